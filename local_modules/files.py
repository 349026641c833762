"""Writes files so that a kill or a power cut leaves the old one or the new one."""

import glob
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from local_modules.errors import InputError, is_disk_full


@contextmanager
def replacing(path: str | os.PathLike, binary: bool = False) -> Iterator[IO]:
    """Opens a file that replaces `path` once it is complete.

    Readers of `path` see the old file or the new one, also after a kill or a power
    cut, and two processes may write the same path at the same time.

    Arguments
    ---------
    path : str or os.PathLike
        The file to write; its folder must exist.
    binary : bool
        Whether it takes bytes instead of text.

    Yields
    ------
    IO
        A file of bytes, or of UTF-8 text with line ends written as given.

    Example
    -------
    >>> path = getfixture("tmp_path") / "note.txt"
    >>> with replacing(path) as file:
    ...     _ = file.write("whole")
    >>> path.read_text()
    'whole'
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        text = {} if binary else {"encoding": "utf-8", "newline": ""}
        with open(part, "wb" if binary else "w", **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(path: str | os.PathLike) -> None:
    """Removes partial files of `path` left by killed processes. No process may be
    writing it."""
    path = Path(path)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def writing_to(path: str | os.PathLike) -> Iterator[None]:
    """Reports a failure to write to a place to the user.

    Raises
    ------
    InputError
        Instead of an OSError.
    OSError
        The disk is full, which `local_modules.errors.exit_status` reports.

    Example
    -------
    >>> with writing_to("/no/a"), replacing("/no/a"):
    ...     pass
    Traceback (most recent call last):
    ...
    local_modules.errors.InputError: /no/a: can't be written: No such file or directory
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            error.filename = error.filename or os.fspath(path)
            raise
        raise InputError(f"{path}: can't be written: {error.strerror}") from None


def check_writable(folder: str | os.PathLike) -> None:
    """Makes a folder if there is none, and checks that files can be written into it,
    before any work is done for them.

    Raises
    ------
    InputError
        They can't.
    """
    with writing_to(folder):
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def check_data_folder(folder: str | os.PathLike) -> None:
    """Checks that the folder of --data_folder exists.

    Raises
    ------
    InputError
        It doesn't.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--data_folder {folder}: there is no such folder")


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def make_private(path: str | os.PathLike) -> None:
    """Makes an empty file that no other user may read, if it does not exist: embeddings
    identify people."""
    # An existing one isn't opened: closing it would free SQLite's locks.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))


def put_on_disk(path: str | os.PathLike) -> None:
    """Waits until a file is on the disk. One moved into place before that may be empty
    after a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
