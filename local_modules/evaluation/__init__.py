"""How good a model is, and what makes scores out of its embeddings."""
