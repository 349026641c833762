"""CN-Celeb1 and CN-Celeb2."""

LICENCE = (
    "CC BY-SA 4.0 for the collection; the copyright of the videos stays "
    "with their owners"
)
