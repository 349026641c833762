"""Recordings in WebDataset's tar shards: packed, checked, fetched and read."""
