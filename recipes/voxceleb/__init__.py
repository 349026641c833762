"""VoxCeleb1 and VoxCeleb2."""
