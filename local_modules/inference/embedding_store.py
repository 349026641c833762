"""Embeddings of files, kept from one command to the next."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from local_modules.errors import InputError, RunError, is_disk_full
from local_modules.files import make_private

EMBEDDINGS = "embeddings.db"  # file name of a model's store


@dataclass(frozen=True)
class Embedded:
    """The embedding and the duration of a file.

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
    """Embeddings in a file, by model and by the state of the audio file; several
    processes may use it at the same time. A `with` closes it.

    Arguments
    ---------
    path : str or os.PathLike
        An SQLite file, created if missing.

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
        """The embedding of a file or a stretch of it, unless the file has changed.

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
        """Stores embeddings: all of them or, if killed meanwhile, none.

        `stamps` are the files' sizes and times before they were read: a file that has
        changed meanwhile is embedded again the next time. `stretches` has the parts of
        files that were not embedded whole.

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
        """Reports an unwritable place, a full disk or a damaged file to the user."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            message = f"{self.path}: embeddings can't be kept there: {error}"
            if is_disk_full(error):
                raise RunError(f"{message}; make room") from None
            raise InputError(message) from None


def _key(path: Path, stretch: Sequence[int]) -> str:
    """The key of a file, or of a stretch of it: no other path lies below a file."""
    return "/".join([str(path), *map(str, stretch)])


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and modification time of a file, which change with its content."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
