"""SpeechBrain manifests of another recipe."""

LICENCE = "that of the recordings' owner"
