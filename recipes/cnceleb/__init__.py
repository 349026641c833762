"""CN-Celeb1 and CN-Celeb2."""
