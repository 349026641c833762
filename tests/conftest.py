"""What the tests share: a small corpus of voices that a small model can learn."""

import os

# Before torch is imported: two threads fight over tensors as small as these.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import soundfile

SAMPLE_RATE = 16000


def voice(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """A pitch in Hz and three formants in Hz."""
    return rng.uniform(90, 250), np.sort(rng.uniform(300, 3500, 3))


def utterance(pitch, formants, rng, seconds=1.2):
    """Harmonics of a wavering pitch, louder near the formants, in noise."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros_like(time)
    waver = 1 + 0.05 * np.sin(2 * np.pi * rng.uniform(2, 5) * time + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch * waver) / SAMPLE_RATE
    for harmonic in range(1, int(4000 / pitch)):
        distance = (harmonic * pitch - formants) / 120
        wave += (0.02 + np.exp(-0.5 * distance**2).sum()) * np.sin(harmonic * phase)
    wave *= 0.3 / np.abs(wave).max()
    return wave + 0.005 * rng.standard_normal(len(time))


@pytest.fixture(scope="session")
def voices_folder(tmp_path_factory):
    """`{train,valid,test}/<speaker>/<utterance>.wav`: 6, 3 and 3 speakers with 8, 4
    and 4 utterances of 1 to 1.4 seconds."""
    root = tmp_path_factory.mktemp("voices")
    rng = np.random.default_rng(0)
    for split, n_speakers, n_utterances in (
        ("train", 6, 8),
        ("valid", 3, 4),
        ("test", 3, 4),
    ):
        for speaker in range(n_speakers):
            folder = root / split / f"{split}{speaker}"
            folder.mkdir(parents=True)
            pitch, formants = voice(rng)
            for number in range(n_utterances):
                wave = utterance(pitch, formants, rng, rng.uniform(1.0, 1.4))
                soundfile.write(folder / f"{number}.wav", wave, SAMPLE_RATE)
    return root
