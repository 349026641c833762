"""Evaluation of a model, and the backend that scores its embeddings."""
