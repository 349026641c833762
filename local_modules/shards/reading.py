"""Reads recordings from shards in a folder, on a web server or behind a pipe."""

import hashlib
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO

from filelock import FileLock
from speechbrain.utils.logger import get_logger

from local_modules.errors import InputError, RunError
from local_modules.files import remove_parts, replacing, sha256
from local_modules.shards.index import CorruptMember, read_index

logger = get_logger(__name__)

WEB = ("http://", "https://")
PIPE = "pipe:"
WAITS = (1.0, 5.0)  # seconds before a shard is fetched again
TIMEOUT = 60.0  # seconds without a byte from a server


class ShardReader:
    """The recordings of a split, read from shards.

    Shards in a folder are read in place. From elsewhere, a shard is fetched whole when
    its first recording is needed, compared with its checksum and kept on disk, once
    for all processes of a machine.

    Arguments
    ---------
    location : str
        A folder; `http://…` of one; or `pipe:COMMAND`, where COMMAND writes the file
        that `{}` names to its standard output.
    manifest : Path
        The manifest that was packed, `SPLIT.csv`.
    cache : str or Path
        Folder for fetched shards.

    Raises
    ------
    InputError
        There is no complete index of this split, or it is of another manifest.

    Example
    -------
    >>> import numpy as np, soundfile
    >>> from local_modules.manifest import Utterance, write_manifest
    >>> from local_modules.shards.packing import pack
    >>> root = Path(getfixture("tmp_path"))
    >>> soundfile.write(root / "a.wav", np.zeros(1600), 16000)
    >>> write_manifest(root / "train.csv", [Utterance("a", 0.1, "a.wav", 0, 1600, "x")])
    >>> shards = pack(root / "train.csv", root, root / "shards")
    >>> reader = ShardReader(str(root / "shards"), root / "train.csv", root / "cache")
    >>> reader.read("a")[:4]
    b'fLaC'
    """

    def __init__(self, location: str, manifest: Path, cache: str | Path):
        if location.startswith(PIPE) and "{}" not in location:
            raise InputError(
                f"--shards {location}: has no {{}}; put it in place of the file name, "
                "as in pipe:cat DIR/{}"
            )
        self.location = location
        self.cache = Path(cache)
        self.is_local = not location.startswith((PIPE, *WEB))
        name = f"{manifest.stem}.json"
        path = Path(location) / name
        if not self.is_local:
            # Named by location: another location's may be needed at the same time.
            key = hashlib.sha256(location.encode()).hexdigest()[:16]
            path = self.cache / f"{key}-{name}"
            self.cache.mkdir(parents=True, exist_ok=True)
            try:
                _fetch(location, name, path)
            except (OSError, HTTPException, ValueError) as error:
                raise InputError(
                    f"--shards {location}: {name} cannot be fetched ({error})"
                ) from None
        self.index = f"--shards {location}: {name}"
        settings, self.shards = read_index(path, self.index)
        if self.shards is None:
            raise InputError(f"{self.index}: packing is not finished; pack it again")
        if settings.get("manifest_sha256") != sha256(manifest):
            raise InputError(
                f"{self.index}: was packed from another {manifest.name} than "
                f"{manifest}; train with the one that was packed (--manifest_folder, "
                "--skip_prep True), or pack this one into another folder"
            )
        self._number = {
            utt_id: number
            for number, shard in enumerate(self.shards)
            for utt_id in shard.members
        }

    def numbers(self, ids: Sequence[str], max_missing_share: float) -> list[int]:
        """The shard of each utterance, -1 for none.

        Raises
        ------
        InputError
            A larger share than given has none.
        """
        numbers = [self._number.get(utt_id, -1) for utt_id in ids]
        n_missing = numbers.count(-1)
        if n_missing > max_missing_share * len(ids):
            raise InputError(
                f"{self.index}: lacks {n_missing} of {len(ids)} utterances of the "
                f"manifest, first {ids[numbers.index(-1)]}; pack this manifest"
            )
        return numbers

    def read(self, utt_id: str) -> bytes:
        """The audio file of an utterance.

        Raises
        ------
        OSError
            It is in no shard, or its shard is missing or damaged.
        RunError
            Its shard cannot be fetched.
        """
        if utt_id not in self._number:
            raise CorruptMember("it is in no shard")
        shard = self.shards[self._number[utt_id]]
        path = Path(self.location) / shard.name
        if not self.is_local:
            path = self._fetched(shard.name, shard.sha256)
        try:
            return shard.members[utt_id].read(path)
        except CorruptMember as error:
            raise CorruptMember(f"{path}: {error}") from None

    def _fetched(self, name: str, digest: str) -> Path:
        """Path of a remote shard, fetched if it isn't cached."""
        # Named by content: shards of one name may come from several places.
        path = self.cache / f"{digest}.tar"
        if path.exists():
            return path
        with FileLock(path.with_suffix(".lock")):
            remove_parts(path)  # of processes that were killed
            for wait in (*WAITS, None):
                if path.exists():  # another process was quicker
                    break
                try:
                    _fetch(self.location, name, path, digest)
                except (OSError, HTTPException) as error:
                    if wait is None:
                        raise RunError(
                            f"--shards {self.location}: {name} cannot be fetched "
                            f"({error}); the same command continues"
                        ) from None
                    logger.warning("%s: is fetched again after: %s", name, error)
                    time.sleep(wait)
        return path


def _fetch(location: str, name: str, path: Path, digest: str | None = None) -> None:
    """Copies a file from a server or a pipe, atomically."""
    found = hashlib.sha256()
    with replacing(path, binary=True) as file:
        with _stream(location, name) as source:
            while block := source.read(2**20):
                found.update(block)
                file.write(block)
        if digest is not None and found.hexdigest() != digest:
            raise OSError("its checksum is not that of the packed file")


@contextmanager
def _stream(location: str, name: str) -> Iterator[IO[bytes]]:
    """Opens a file on a server or behind a pipe."""
    if not location.startswith(PIPE):
        url = f"{location.rstrip('/')}/{name}"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            yield response
        return
    command = location.removeprefix(PIPE).replace("{}", shlex.quote(name))
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        yield process.stdout
    if process.returncode:
        raise OSError(f"{command}: exit status {process.returncode}")
