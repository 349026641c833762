"""Common Voice."""

LICENCE = "CC0; nobody may try to find out who the speakers are"
