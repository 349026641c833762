"""Somebody else's SpeechBrain manifests."""

LICENCE = "that of the recordings' owner"
