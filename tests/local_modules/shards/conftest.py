"""A small corpus of noises, packed."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from local_modules.manifest import Utterance, write_manifest
from local_modules.shards.packing import pack

RATE = 16000
PER_SHARD = 6
# Suffix and subtype of the files, which take turns.
KINDS = [
    ("wav", "PCM_16"),
    ("wav", "PCM_24"),
    ("wav", "FLOAT"),
    ("wav", "PCM_U8"),
    ("flac", "PCM_16"),
    ("ogg", "VORBIS"),
]


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """`utterances` of all kinds, whole files and stretches of them, below `data`; the
    `manifest` of them; and `folder` with 5 shards of them."""
    root = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(0)
    utterances = []
    for number in range(24):
        suffix, subtype = KINDS[number % len(KINDS)]
        path = f"s{number % 4}/{number:02d}.b.{suffix}"
        (root / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        n_samples = 4000 + 10 * number
        wave = rng.uniform(-0.5, 0.5, (n_samples, 1 + number % 2))
        soundfile.write(root / "data" / path, wave, RATE, subtype)
        stretches = [(0, n_samples)]
        if number < len(KINDS):
            stretches.append((1001, 3003))
        for start, stop in stretches:
            utt_id = f"s{number % 4}/{number:02d}.b-{start}"
            utterances.append(
                Utterance(
                    utt_id, (stop - start) / RATE, path, start, stop, f"s{number % 4}"
                )
            )
    write_manifest(root / "train.csv", utterances)
    pack(root / "train.csv", root / "data", root / "shards", PER_SHARD)
    return SimpleNamespace(
        utterances=utterances,
        data=root / "data",
        manifest=root / "train.csv",
        folder=root / "shards",
    )
