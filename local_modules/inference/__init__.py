"""A trained model in use: its folder, its embeddings, voices enrolled and found."""
