"""The parts of the recipe: tensors in, tensors out, each testable alone."""
