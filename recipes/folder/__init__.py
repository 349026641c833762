"""Your own recordings, in a folder."""

LICENCE = "that of the recordings' owner"
