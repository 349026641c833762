"""What the tests share: a small corpus of voices, a small model trained on it, and a
browser."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

# Before torch is imported: tensors as small as these are slower with two threads.
os.environ["OMP_NUM_THREADS"] = "1"
# A missing model would be requested from the hub again and again.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import soundfile
from tqdm import tqdm

ROOT = Path(__file__).parent
SAMPLE_RATE = 16000

# The default lock is shared with forked processes: one that is killed may never release
# it.
tqdm.set_lock(threading.RLock())


def pytest_collection_modifyitems(items):
    """Tests that start whole programs come first: an idle worker can take over tests
    that others haven't begun, except their last."""
    programs = {ROOT / "tests", ROOT / "tests" / "benchmarks"}
    items.sort(key=lambda item: item.path.parent not in programs)


def voice(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """A pitch in Hz and three formants in Hz."""
    return rng.uniform(90, 250), np.sort(rng.uniform(300, 3500, 3))


def utterance(pitch, formants, rng, seconds=1.2):
    """Harmonics of a wavering pitch, louder near the formants, with the loudness of
    four syllables a second, in noise."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros_like(time)
    waver = 1 + 0.05 * np.sin(2 * np.pi * rng.uniform(2, 5) * time + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch * waver) / SAMPLE_RATE
    for harmonic in range(1, int(4000 / pitch)):
        distance = (harmonic * pitch - formants) / 120
        wave += (0.02 + np.exp(-0.5 * distance**2).sum()) * np.sin(harmonic * phase)
    wave *= 0.15 + 0.85 * np.sin(4 * np.pi * (time + rng.uniform())) ** 2
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


@pytest.fixture(autouse=True)
def no_logging_into_a_closed_stream():
    """SpeechBrain's handlers would keep the streams that pytest captures for a test."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def shared_with_programs():
    """Imported late: pytest's controller runs no tests, and need not wait for it."""
    import tests.environment  # noqa: F401


@pytest.fixture
def no_pictures(monkeypatch):
    """Trainings in this process draw no plots, which would take longer than they do."""
    from local_modules.training import finish

    monkeypatch.setattr(finish, "draw_plots", lambda *args: None)


@pytest.fixture
def unsynced(monkeypatch):
    """Files moved into place before they were synced: a power cut may leave them
    empty."""
    on_disk, found = set(), []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(file):
        fsync(file)
        on_disk.add(os.fstat(file).st_ino)

    def noted_replace(source, target):
        files = Path(source).iterdir() if Path(source).is_dir() else [Path(source)]
        found.extend(path for path in files if path.stat().st_ino not in on_disk)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return found


@pytest.fixture
def in_browser(tmp_path):
    """A function of a page's HTML, a JavaScript expression and a width in pixels: opens
    the page in Chromium and returns the expression's value and the console's lines."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")

    def open_page(html, expression, width):
        script = (
            f"<script>const found = {expression}; document.body.insertAdjacentHTML("
            '"beforeend", `<pre id="found">${JSON.stringify(found)}</pre>`);</script>'
        )
        probe = tmp_path / "probe.html"
        probe.write_text(html.replace("</body>", f"{script}</body>"), encoding="utf-8")
        shown = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
            + ["--disable-background-networking", "--disable-component-update"]
            + ["--disable-sync", "--disable-quic"]
            + [f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr"]
            + ["--v=0", "--virtual-time-budget=10000"]
            + [f"--window-size={width},900", "--dump-dom", probe.as_uri()],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        # The last one: the script that writes it holds the same words.
        text = shown.stdout.rpartition('<pre id="found">')[2].split("</pre>")[0]
        console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(text), console

    return open_page


@pytest.fixture(scope="session")
def trained_run(voices_folder, tmp_path_factory):
    """The folder of a finished training of a very small model."""
    import train_speaker

    folder = tmp_path_factory.mktemp("run")
    values = {
        "corpus": "folder",
        "data_folder": voices_folder,
        "output_folder": folder,
        "d_model": 16,
        "n_blocks": 1,
        "n_heads": 2,
        "d_ffn": 16,
        "emb_dim": 16,
        "batch_size": 8,
        "crop_seconds": 0.8,
        "number_of_epochs": 2,
    }
    recipe = str(ROOT / "hparams" / "conformer.yaml")
    arguments = [text for key in values for text in (f"--{key}", f"{values[key]}")]
    with contextlib.redirect_stdout(None):  # or a doctest takes it for its own
        assert train_speaker.main([recipe, *arguments, "--noprogressbar"]) == 0
    return folder
