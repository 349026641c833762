"""The recordings sent to the page, and their end."""

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

SECONDS_KEPT = 600
SWEPT_EVERY = 60.0  # seconds
PREFIX, LOCK = "speaker-", "in-use.lock"


@contextlib.contextmanager
def uploads_folder() -> Iterator[Path]:
    """A temporary folder for the recordings sent to a page; each is deleted after
    `SECONDS_KEPT`. Those that a killed page has left are deleted, too."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        place = Path(name)
        with FileLock(place / LOCK):
            _delete_abandoned(place)
            folder = place / "sent"
            folder.mkdir()
            threading.Thread(target=_sweep, args=[folder], daemon=True).start()
            yield folder


def _delete_abandoned(place: Path) -> None:
    """Deletes folders beside this one that are this user's and that no page has
    locked."""
    for lock in place.parent.glob(f"{PREFIX}*/{LOCK}"):
        other = lock.parent
        with contextlib.suppress(OSError):  # in use, or gone by now
            if other != place and other.lstat().st_uid == place.stat().st_uid:
                with FileLock(lock, blocking=False):
                    shutil.rmtree(other)


def _sweep(folder: Path) -> None:
    """Deletes old recordings for as long as the folder exists. Gradio's own
    `delete_cache` misses uploads that broke off."""
    while folder.exists():
        with contextlib.suppress(OSError):  # one is gone by now
            for path in folder.rglob("*"):
                if path.is_file() and time.time() - path.stat().st_mtime > SECONDS_KEPT:
                    path.unlink()
        time.sleep(SWEPT_EVERY)
