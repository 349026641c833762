"""Hyperparameter search: the search space, the workers and the results."""
