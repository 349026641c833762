"""Somebody else's SpeechBrain manifests."""
