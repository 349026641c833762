"""Your own recordings, in a folder."""
