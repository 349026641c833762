"""The search for hyperparameters: what is searched, by whom, and what came of it."""
