"""Common Voice."""

LICENCE = "CC0; it is forbidden to identify the speakers"
