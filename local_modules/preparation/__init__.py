"""From recordings to manifests: what the `prepare` of every corpus shares.

A corpus' own file says which recordings there are, and of each the split, the speaker
and the session; what is here reads their headers, holds out speakers, removes test
speakers from training, draws trials and writes.
"""
