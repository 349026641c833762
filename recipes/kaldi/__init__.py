"""A Kaldi data folder."""

LICENCE = "that of the recordings' owner"
