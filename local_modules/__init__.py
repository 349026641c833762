"""The parts of the recipe. What lies here is used from several sides; the folders hold
what belongs to one."""
