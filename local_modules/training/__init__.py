"""A training beyond its parts: what is done in which order, how it is continued, and
what it leaves."""
