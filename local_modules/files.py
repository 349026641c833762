"""Writes files so that a kill or a power cut leaves the old one or the new one."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock

from local_modules.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike, binary: bool = False) -> Iterator[IO]:
    """Opens a file that takes the place of `path` once it is complete.

    Whoever reads `path` sees the old file or the new one, also after a kill or a
    power cut, and two processes may write the same path at once.

    Arguments
    ---------
    path : str or os.PathLike
        The file to write; its folder must exist.
    binary : bool
        Whether it takes bytes instead of text.

    Yields
    ------
    IO
        A file of bytes, or of UTF-8 text that writes line ends as they are given.

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


@contextmanager
def restoring(folder: str | os.PathLike) -> Iterator[None]:
    """Gives a folder the files back that it had, if the body raises; if it was killed,
    before it begins again. Others wait meanwhile.

    Arguments
    ---------
    folder : str or os.PathLike
        It need not exist, but its parent has to.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "manifests"
    >>> folder.mkdir()
    >>> _ = (folder / "train.csv").write_text("old")
    >>> with restoring(folder):
    ...     _ = (folder / "train.csv").write_text("new")
    ...     raise ValueError
    Traceback (most recent call last):
    ...
    ValueError
    >>> (folder / "train.csv").read_text()
    'old'
    """
    folder = Path(folder)
    kept, part, lock = (
        folder.with_name(f".{folder.name}.{suffix}")
        for suffix in ("kept", "part", "lock")
    )
    with FileLock(lock):
        shutil.rmtree(part, ignore_errors=True)
        if kept.exists():
            _copy_back(kept, folder)
        elif folder.exists():
            shutil.copytree(folder, part)
            part.rename(kept)
        else:
            kept.mkdir()
        try:
            yield
        except BaseException:
            _copy_back(kept, folder)
            raise
        finally:
            kept.rename(part)  # at once: a half of it would be given back
            shutil.rmtree(part)


def _copy_back(kept: Path, folder: Path) -> None:
    """Leaves in a folder what was kept of it and nothing else; killed, it can be done
    again."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if not (kept / path.name).exists():
            path.unlink()
    shutil.copytree(kept, folder, dirs_exist_ok=True)


@contextmanager
def writing_to(path: str | os.PathLike) -> Iterator[None]:
    """What can't be written to a place is a person's to know.

    Raises
    ------
    InputError
        Instead of an OSError.

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
        raise InputError(f"{path}: can't be written: {error.strerror}") from None


def check_writable(folder: str | os.PathLike) -> None:
    """Makes a folder if there is none and sees whether files can be written into it,
    before the work that they are to hold.

    Raises
    ------
    InputError
        They can't.
    """
    with writing_to(folder):
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def put_on_disk(path: str | os.PathLike) -> None:
    """Waits until a file is on the disk. What takes its place before that may be empty
    after a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
