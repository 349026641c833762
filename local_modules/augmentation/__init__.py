"""Augmentation of speech in training: noises and rooms, recorded or simulated."""
