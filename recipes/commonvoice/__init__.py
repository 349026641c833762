"""Common Voice."""
