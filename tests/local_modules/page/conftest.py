"""What the tests of the page share: somebody who answers, and recordings."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from local_modules.inference.verification import Verifier
from local_modules.inference.voices import VoiceStore
from local_modules.page.answers import Answers


@pytest.fixture(scope="package")
def verifier(trained_run):
    """The small trained model."""
    return Verifier(trained_run / "model")


@pytest.fixture
def answers(verifier, tmp_path):
    """Answers of that model, with nobody enrolled."""
    path = tmp_path / "voices.db"
    store = path, verifier.model.fingerprint, verifier.model.source
    return Answers(verifier, lambda: VoiceStore(*store))


@pytest.fixture(scope="package")
def words(voices_folder):
    """Recordings of the test speakers by name."""
    folders = sorted((voices_folder / "test").iterdir())
    return {folder.name: sorted(map(str, folder.iterdir())) for folder in folders}


@pytest.fixture(scope="package")
def bad(tmp_path_factory, words):
    """Recordings that are wrong in one way each, by name."""
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    (wave, rate), found = soundfile.read(words["test0"][0]), {}
    for name, samples in {
        "quiet": 0.001 * wave,
        "short": wave[: rate // 4],
        "noise": 0.1 * rng.standard_normal(2 * rate),
        "clipped": np.clip(20 * wave, -1, 1),
        "long": np.zeros(121 * rate),
    }.items():
        found[name] = str(folder / f"{name}.wav")
        soundfile.write(found[name], samples, rate)
    found["broken"] = str(folder / "broken.wav")
    Path(found["broken"]).write_bytes(b"no sound at all")
    found["headless"] = str(folder / "headless.raw")
    Path(found["headless"]).write_bytes(bytes(2 * rate))
    return found
