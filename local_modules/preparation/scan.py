"""Finding the audio of a folder."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

from local_modules.errors import InputError, printable
from local_modules.preparation.recordings import N_NAMED

logger = get_logger(__name__)

# libsndfile names its formats, not their suffixes; headerless data is left out because
# it does not declare its rate.
AUDIO_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    | {".aif", ".aifc", ".oga", ".opus", ".snd", ".sph"}
)


def find_audio(
    root: Path,
    layout: str,
    suffixes: frozenset[str] = AUDIO_SUFFIXES,
    key: str = "data_folder",
) -> list[str]:
    """Finds the audio below a folder, in an order that is the same on all machines.

    Links are followed; names that begin with a dot are ignored.

    Arguments
    ---------
    root : Path
        The data folder.
    layout : str
        What is expected there, for messages.
    suffixes : frozenset of str
        Suffixes of audio files, in lower case.
    key : str
        The setting that names the folder, for messages.

    Returns
    -------
    list of str
        POSIX paths relative to `root`.

    Raises
    ------
    InputError
        If the folder does not exist, has no audio, or a part of it can't be read.
    """
    check_folder(root, layout, key)
    audio: list[str] = []
    others: Counter[str] = Counter()
    try:
        for path in _walk(str(root), "", frozenset()):
            suffix = os.path.splitext(path)[1].lower()
            if suffix in suffixes:
                audio.append(path)
            else:
                others[suffix or "no suffix"] += 1
    except OSError as error:
        raise InputError(
            f"{key} {root}: {error.filename} cannot be read: {error.strerror}"
        ) from None
    tally = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(N_NAMED))
    if not audio:
        raise InputError(
            f"{key} {root}: holds no audio that libsndfile reads (found "
            f"{printable(tally) or 'nothing'}); {layout}, as .wav, .flac, .ogg or .mp3"
        )
    if others:
        logger.info("%s: ignored files that are not audio: %s", root, printable(tally))
    return audio


def check_folder(root: Path, layout: str, key: str = "data_folder") -> None:
    """Checks that a folder of data exists.

    Arguments
    ---------
    root : Path
        The folder.
    layout : str
        What is expected there, for the message.
    key : str
        The setting that names it, for the message.

    Raises
    ------
    InputError
        If it is not a folder.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{key} {root}: {problem}; {layout}")


def path_from(root: Path, path: str) -> str:
    """The path of a file that a list names.

    Arguments
    ---------
    root : Path
        The data folder.
    path : str
        Absolute, or relative to `root`.

    Returns
    -------
    str
        POSIX path relative to `root`.

    Raises
    ------
    InputError
        If the file lies outside and `root` is a link: from there, `..` is ambiguous.

    Example
    -------
    >>> path_from(Path("/corpora/mine"), "/corpora/theirs/1.wav")
    '../theirs/1.wav'
    """
    here = os.path.abspath(root)
    relative = Path(os.path.relpath(os.path.join(here, path), here)).as_posix()
    if relative.startswith("../") and os.path.realpath(root) != here:
        raise InputError(
            f"data_folder {root}: is reached through a link, and {path} lies outside; "
            f"give the folder itself, {os.path.realpath(root)}"
        )
    return relative


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder above
        return
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):  # such as ._x.wav of macOS, not audio
            continue
        path = prefix + entry.name
        if entry.is_dir():
            yield from _walk(entry.path, f"{path}/", above | {here})
        elif entry.is_file() or entry.is_symlink():
            yield path
