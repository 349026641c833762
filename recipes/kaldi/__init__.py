"""A Kaldi data folder."""
