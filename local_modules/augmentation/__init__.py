"""What is mixed into speech in training: noises and rooms, recorded or simulated."""
