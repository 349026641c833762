"""Embeddings of files, kept from one command to the next."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from local_modules.errors import InputError, RunError, is_disk_full
from local_modules.files import make_private

EMBEDDINGS = "embeddings.db"  # what a store of a model's is called


@dataclass(frozen=True)
class Embedded:
    """What is known of a file.

    Arguments
    ---------
    vector : numpy.ndarray
        Its embedding, float32, [emb_dim].
    seconds : float
        Its duration.
    """

    vector: np.ndarray
    seconds: float


class EmbeddingStore:
    """Embeddings in a file, by model and by audio file as it was then; several
    processes may use it at a time. A `with` closes it.

    Arguments
    ---------
    path : str or os.PathLike
        An SQLite file, made if there is none.

    Raises
    ------
    InputError
        Embeddings can't be kept there, or the file is damaged.
    """

    def __init__(self, path):
        self.path = Path(path)
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            make_private(self.path)
            self._database = sqlite3.connect(path, timeout=60.0)
        with self._told(), self._database:
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS embeddings (model TEXT, window REAL, "
                "path TEXT, size INTEGER, mtime_ns INTEGER, seconds REAL, vector BLOB, "
                "PRIMARY KEY (model, window, path)) WITHOUT ROWID"
            )

    def __enter__(self) -> "EmbeddingStore":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def get(
        self, model: str, window: float, path: Path, stretch: Sequence[int] = ()
    ) -> Embedded | None:
        """What is kept of a file or of a stretch of it, unless it has changed since.

        Raises
        ------
        InputError
            The store is damaged.
        """
        with self._told():
            row = self._database.execute(
                "SELECT size, mtime_ns, seconds, vector FROM embeddings "
                "WHERE model = ? AND window = ? AND path = ?",
                (model, window, _key(path, stretch)),
            ).fetchone()
        if row is None or row[:2] != stamp_of(path):
            return None
        return Embedded(np.frombuffer(row[3], np.float32), row[2])

    def put(
        self,
        model: str,
        window: float,
        embedded: Iterable[tuple[Path, Embedded]],
        stamps: Mapping[Path, tuple[int, int]],
        stretches: Mapping[Path, Sequence[int]] | None = None,
    ) -> None:
        """Keeps files, all of them or, if it is killed meanwhile, none.

        `stamps` are their sizes and times before they were read: one that has changed
        meanwhile is embedded again the next time. `stretches` has the parts of those
        that were not embedded whole.

        Raises
        ------
        InputError
            The file can't be written to.
        RunError
            The disk is full.
        """
        stretches = stretches or {}
        rows = [
            (model, window, _key(p, stretches.get(p, ())), *stamps[p])
            + (e.seconds, e.vector.tobytes())
            for p, e in embedded
        ]
        with self._told(), self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?, ?, ?)", rows
            )

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A place that can't be written to, or is full, and a file that is damaged are
        a person's to know."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            told = f"{self.path}: embeddings can't be kept there: {error}"
            if is_disk_full(error):
                raise RunError(f"{told}; make room") from None
            raise InputError(told) from None


def _key(path: Path, stretch: Sequence[int]) -> str:
    """What a store calls a file or a stretch of it; nothing lies below a file."""
    return "/".join([str(path), *map(str, stretch)])


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of a file, which change with it."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
