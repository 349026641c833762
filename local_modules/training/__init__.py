"""The training run: its order of steps, how it is resumed, and what it writes."""
