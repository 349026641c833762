"""Enrolled voices, in one SQLite file that several processes may use at the same time.

An embedding identifies a person: a voice is stored with the date of its enrolment, and
a removed voice leaves no trace in the file. It may leave one on the disk: SQLite
deletes its rollback journals without overwriting them.
"""

import os
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import date
from pathlib import Path

import numpy as np

from local_modules.errors import InputError, RunError, is_disk_full
from local_modules.files import make_private
from local_modules.inference.speech import Quality
from local_modules.inference.verification import Voice

SCHEMA = """
CREATE TABLE model (fingerprint TEXT NOT NULL, source TEXT NOT NULL);
CREATE TABLE recordings (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, enrolled_on TEXT NOT NULL,
    vector BLOB NOT NULL, seconds REAL, speech_seconds REAL, level_db REAL,
    clipped REAL
);
CREATE INDEX by_name ON recordings (name);
"""
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"


@dataclass(frozen=True)
class Enrolled:
    """A summary of an enrolled voice.

    Arguments
    ---------
    name : str
        The speaker's name.
    n_recordings : int
        Number of recordings.
    speech_seconds : float
        Duration of their speech.
    level_db : float
        Mean level of the speech, in dB relative to full scale.
    enrolled_on : str
        Date of the latest recording, YYYY-MM-DD.
    """

    name: str
    n_recordings: int
    speech_seconds: float
    level_db: float
    enrolled_on: str


class VoiceStore:
    """The voices enrolled with one model.

    Arguments
    ---------
    path : str or os.PathLike
        An SQLite file; with a fingerprint, created if missing.
    fingerprint : str | None
        Of the model: vectors of different models can't be compared. None to only list
        and remove voices, whichever model made them.
    source : str
        The model's name.

    Raises
    ------
    InputError
        The file has another model's voices, or is not a voices file.

    Example
    -------
    >>> store = VoiceStore(getfixture("tmp_path") / "voices.db", "f1", "model")
    >>> quality = Quality(3.0, 2.5, level_db=-20.0, clipped=0.0)
    >>> store.add("ann", [Voice(np.ones(4, np.float32), quality)])
    >>> [(voice.name, voice.speech_seconds) for voice in store.enrolled()]
    [('ann', 2.5)]
    >>> store.remove("ann")
    >>> store.enrolled()
    []
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fingerprint: str | None = None,
        source: str = "",
    ):
        self.path = Path(path)
        self._fingerprint, self._source = fingerprint, source
        try:
            if fingerprint is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                make_private(self.path)
            existing = f"{self.path.absolute().as_uri()}?mode=rw"
            self._database = sqlite3.connect(existing, uri=True, timeout=60.0)
            self._database.execute("PRAGMA secure_delete = ON")
            with self._database:
                if fingerprint is not None:
                    self._database.execute("BEGIN IMMEDIATE")
                tables = self._database.execute(TABLES).fetchall()
                if fingerprint is not None and not tables:  # a new file
                    for statement in SCHEMA.split(";"):
                        self._database.execute(statement)
                elif not {("model",), ("recordings",)} <= {*tables}:
                    raise InputError(
                        f"{path}: is not a voices file: it has no table of recordings; "
                        "--voices FILE names another"
                    )
                if fingerprint is not None:
                    self._claim()
        except InputError:
            self.close()
            raise
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{path}: is not a voices file: {error}") from None

    def __enter__(self) -> "VoiceStore":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Closes the file; reports a full or broken disk to the user."""
        self.close()
        if isinstance(error, sqlite3.Error):
            if is_disk_full(error):
                raise RunError(f"{self.path}: {error}; make room") from None
            raise InputError(f"{self.path}: {error}") from None

    def __contains__(self, name: str) -> bool:
        """Whether a name is enrolled."""
        query = "SELECT 1 FROM recordings WHERE name = ?"
        return self._database.execute(query, (name,)).fetchone() is not None

    def add(self, name: str, voices: Sequence[Voice]) -> None:
        """Stores recordings of a voice, all or none; a known voice gets more.

        Raises
        ------
        InputError
            The name is empty or has an unprintable character; or the file has another
            model's voices by now.
        ValueError
            The file was opened without a fingerprint.
        """
        if self._fingerprint is None:
            raise ValueError("of which model the voices are is not known")
        if not name.strip() or not name.isprintable():
            raise InputError(f"{name!r}: is not a name to enrol")
        today = date.today().isoformat()
        rows = [
            (name, today, v.vector.astype("<f4").tobytes(), *astuple(v.quality))
            for v in voices
        ]
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._claim()  # another model may have claimed it while it was empty
            self._database.executemany(
                "INSERT INTO recordings (name, enrolled_on, vector, seconds, "
                "speech_seconds, level_db, clipped) VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._mark_changed()

    def enrolled(self) -> list[Enrolled]:
        """All voices, by name."""
        rows = self._database.execute(
            "SELECT name, COUNT(*), SUM(speech_seconds), AVG(level_db), "
            "MAX(enrolled_on) FROM recordings GROUP BY name ORDER BY name"
        )
        return [Enrolled(*row) for row in rows]

    def voices(self, names: Sequence[str]) -> list[list[Voice]]:
        """The recordings of each of the named voices.

        Raises
        ------
        InputError
            One of them is not enrolled.
        """
        found = []
        for name in names:
            rows = self._database.execute(
                "SELECT vector, seconds, speech_seconds, level_db, clipped "
                "FROM recordings WHERE name = ? ORDER BY number",
                (name,),
            ).fetchall()
            if not rows:
                raise InputError(f"{name}: is not enrolled in {self.path}")
            found.append(
                [
                    Voice(np.frombuffer(vector, "<f4"), Quality(*quality))
                    for vector, *quality in rows
                ]
            )
        return found

    def state(self) -> int:
        """A number that differs after every change, by any process."""
        return self._database.execute("PRAGMA user_version").fetchone()[0]

    def matrix(self) -> tuple[list[str], np.ndarray]:
        """All embeddings, and their speakers.

        Returns
        -------
        names : list of str
            The speaker of each recording.
        vectors : numpy.ndarray
            float32, [recordings, emb_dim].
        """
        names, octets = [], bytearray()
        for name, vector in self._database.execute(
            "SELECT name, vector FROM recordings ORDER BY number"
        ):
            names.append(name)
            octets += vector
        vectors = np.frombuffer(octets, "<f4")
        return names, vectors.reshape(len(names), -1 if names else 0)

    def remove(self, name: str) -> None:
        """Removes a voice: its place in the file is overwritten.

        Raises
        ------
        InputError
            It is not enrolled.
        """
        with self._database:
            gone = self._database.execute(
                "DELETE FROM recordings WHERE name = ?", (name,)
            )
            if gone.rowcount:
                self._mark_changed()
        if not gone.rowcount:
            raise InputError(f"{name}: is not enrolled in {self.path}")

    def _claim(self) -> None:
        """Assigns a file without voices to this model, within a transaction.

        Raises
        ------
        InputError
            It has another model's voices.
        """
        made_with = self._database.execute("SELECT * FROM model").fetchone()
        if made_with is not None and made_with[0] == self._fingerprint:
            return
        found = self._database.execute("SELECT 1 FROM recordings LIMIT 1").fetchone()
        if made_with is not None and found is not None:
            raise InputError(
                f"{self.path}: the voices were enrolled with another model, "
                f"{made_with[1]} as it was then; use that one, or enrol them again in "
                "another --voices file"
            )
        self._database.execute("DELETE FROM model")
        values = self._fingerprint, self._source
        self._database.execute("INSERT INTO model VALUES (?, ?)", values)

    def _mark_changed(self) -> None:
        # Not a count: a file that replaces this one may have the same count.
        self._database.execute(f"PRAGMA user_version = {secrets.randbits(31)}")

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
