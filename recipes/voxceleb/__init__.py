"""VoxCeleb1 and VoxCeleb2."""

LICENCE = (
    "CC BY 4.0 for the metadata; the copyright of the recordings stays "
    "with the owners of the videos"
)
