"""From recordings to manifests: what the `prepare` of every corpus shares.

A corpus' own module lists its recordings, each with split, speaker and session; this
package reads their headers, holds out speakers, removes test speakers from training,
draws trials and writes the files.
"""
