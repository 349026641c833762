"""How long recordings that were sent to the page are there."""

import multiprocessing
import os
import signal
import tempfile
import time

import pytest

from local_modules.page import uploads
from local_modules.page.uploads import SECONDS_KEPT, uploads_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def keep(report):
    """Keeps a recording for ever, and says so."""
    with uploads_folder() as folder:
        (folder / "a.wav").touch()
        os.write(report, b".")
        signal.pause()


def test_what_a_killed_page_left_is_deleted(temporary):
    """But nothing of a page that is up, and nothing else of a name like theirs."""
    reading, writing = os.pipe()
    pages = []
    for _ in range(2):
        page = multiprocessing.get_context("fork").Process(target=keep, args=[writing])
        page.start()
        assert os.read(reading, 1)
        pages.append(page)
    (temporary / "speaker-notes").mkdir()
    (temporary / "speaker-notes" / "a.wav").touch()
    try:
        assert len(list(temporary.rglob("a.wav"))) == 3
        pages[0].kill()
        pages[0].join()
        with uploads_folder():
            assert len(list(temporary.rglob("a.wav"))) == 2
        assert (temporary / "speaker-notes" / "a.wav").exists()
    finally:
        pages[1].kill()
        pages[1].join()
    with uploads_folder():
        pass
    assert [path.name for path in temporary.iterdir()] == ["speaker-notes"]


def test_a_recording_is_kept_for_ten_minutes(monkeypatch):
    monkeypatch.setattr(uploads, "SWEPT_EVERY", 0.01)
    with uploads_folder() as folder:
        files = [folder / "tmp_broken_off", folder / "sum" / "old.wav"]
        files += [folder / "sum" / "new.wav"]
        (folder / "sum").mkdir()
        for file, age in zip(files, (1, 1, -60), strict=True):
            file.touch()
            then = time.time() - SECONDS_KEPT - age
            os.utime(file, (then, then))
        deadline = time.monotonic() + 30
        while any(file.exists() for file in files[:2]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert files[2].exists()
    assert SECONDS_KEPT == 600  # as README.md says
