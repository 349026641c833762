"""LibriSpeech."""

LICENCE = "CC BY 4.0"
