"""Audio that libsndfile can't read becomes FLAC, through ffmpeg."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock
from joblib import cpu_count
from tqdm import tqdm

from local_modules.errors import InputError, RunError, is_disk_full
from local_modules.files import put_on_disk
from local_modules.preparation.recordings import Skipped

SAMPLE_RATE = 16000
FOLDER = "converted"
BATCH = 1000


def converted_path(utterance_id: str) -> str:
    """The path of a converted utterance, relative to the data folder."""
    return f"{FOLDER}/{utterance_id}.flac"


def convert(root: Path, source_of: Mapping[str, str]) -> list[Skipped]:
    """Converts recordings to mono FLAC of 16 kHz, one per core at a time.

    A file appears only when it is complete, so an interrupted call can be repeated.

    Arguments
    ---------
    root : Path
        The data folder.
    source_of : mapping of str to str
        Paths of the originals, relative to `root`, by utterance ID.

    Returns
    -------
    list of Skipped
        What could not be decoded.

    Raises
    ------
    InputError
        If there is no ffmpeg.
    RunError
        If nothing can be written.
    OSError
        If the disk is full.
    """
    if not source_of:
        return []
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        source = next(iter(source_of.values()))
        raise InputError(
            f"data_folder {root}: {len(source_of)} recordings, such as {source}, have "
            "to be converted, and ffmpeg is not on the PATH; install it (apt install "
            "ffmpeg, brew install ffmpeg), or convert them to .wav or .flac beside the "
            "originals"
        )

    def one(utterance_id: str) -> Skipped | None:
        source = source_of[utterance_id]
        target = root / converted_path(utterance_id)
        reason = _convert(ffmpeg, root / source, target)
        return Skipped(source, reason) if reason else None

    folders = {os.path.dirname(converted_path(name)) for name in source_of}
    try:
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
        # A second run in the same folder waits.
        with FileLock(root / FOLDER / ".lock"):
            return _in_parallel(one, list(source_of))
    except OSError as error:
        if is_disk_full(error):
            raise
        raise RunError(
            f"{error.filename}: cannot be written: {error.strerror}; if the corpus is "
            "read-only, use as data_folder a folder of your own with links to it"
        ) from None


def _in_parallel(
    one: Callable[[str], Skipped | None], names: Sequence[str]
) -> list[Skipped]:
    # A task in the pool's queue takes 2 KB; VoxCeleb2 has a million.
    batches = (names[i : i + BATCH] for i in range(0, len(names), BATCH))
    pool = ThreadPoolExecutor(cpu_count())
    progress = tqdm(desc="Converting", unit="file", total=len(names), disable=None)
    skipped = []
    try:
        with progress:
            for batch in batches:
                for result in pool.map(one, batch):
                    if result:
                        skipped.append(result)
                    progress.update()
        return skipped
    finally:
        # After Ctrl-C, queued files are not converted.
        pool.shutdown(cancel_futures=True)


def _convert(ffmpeg: str, source: Path, target: Path) -> str | None:
    """Converts a file if it is not yet converted; returns why it can't be."""
    if target.exists():
        return None
    part = target.with_name(f".{target.name}.part")
    command = [ffmpeg, "-nostdin", "-loglevel", "error", "-y"]
    # A truncated file is not used: with -xerror, ffmpeg ends with an error status.
    command += ["-xerror", "-i", source, "-vn"]
    command += ["-ac", "1", "-ar", str(SAMPLE_RATE), "-threads", "1"]
    command += ["-f", "flac", "-sample_fmt", "s16", part]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            for number in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(number) in done.stderr:
                    raise OSError(number, os.strerror(number), str(target))
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            return f"cannot be converted: {lines[-1].removeprefix(f'{source}: ')}"
        put_on_disk(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return None
