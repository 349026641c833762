"""The local page of `speaker.py serve`: recordings in, answers out."""
