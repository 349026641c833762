"""Recordings before and after their headers are read."""

import contextlib
import csv
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import soundfile
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from local_modules.errors import RunError, printable
from local_modules.files import replacing
from local_modules.manifest import Utterance

logger = get_logger(__name__)

# Trial lists are split at white space and at line ends, and SpeechBrain replaces
# `$name` in a manifest, drops spaces that begin a field, and splits a line of
# label_encoder.txt at ` => `.
UNUSABLE_NAME = re.compile(r"\$|[^\S ]|  |(^|/) | => |[\ud800-\udfff]")
BATCH = 64
OVERSHOOT_SECONDS = 0.5
LISTED_SECONDS = 0.1  # enough for every encoder here
MAX_FRAMES = 2**62  # libsndfile gives 2**63 - 1 if the length is unknown
BLOCK = 2**16  # samples decoded at a time
N_NAMED = 5


def finite(text: str) -> float:
    """Parses a finite number.

    Raises
    ------
    ValueError
        It is not a number, or not a finite one.

    Example
    -------
    >>> finite("48000.0")
    48000.0
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text}: is not finite")
    return number


class Samples(NamedTuple):
    """A stretch of a recording, from sample `start` up to before `stop`."""

    start: float
    stop: float

    def at(self, rate: int, frames: int) -> tuple[int, int]:
        """First sample and the one after the last, in a file of `rate` Hz and `frames`
        samples."""
        return int(self.start), int(self.stop)


class Seconds(NamedTuple):
    """A stretch of a recording, in seconds. As in Kaldi's `extract-segments`, a stop of
    -1 means the recording's end, and so does one less than half a second after it."""

    start: float
    stop: float

    def at(self, rate: int, frames: int) -> tuple[int, int]:
        """First sample and the one after the last, in a file of `rate` Hz and `frames`
        samples."""
        start, stop = round(self.start * rate), round(self.stop * rate)
        if self.stop == -1 or frames < stop < frames + OVERSHOOT_SECONDS * rate:
            stop = frames
        return start, stop


@dataclass(frozen=True, slots=True)
class Recording:
    """An utterance as a corpus lists it, before its audio is read.

    Arguments
    ---------
    id : str
        Unique name of the utterance.
    path : str
        POSIX path of the audio file, relative to the data folder.
    speaker : str
        Name of the speaker.
    split : str
        `train`, `valid` or `test`.
    session : str | None
        What was recorded on one occasion, such as a video or a chapter; None if
        unknown.
    stretch : Samples | Seconds | None
        The part of the file that is the utterance; None for the whole file.
    """

    id: str
    path: str
    speaker: str
    split: str = "train"
    session: str | None = None
    stretch: Samples | Seconds | None = None


class Skipped(NamedTuple):
    """A file that is left out, and why."""

    path: str
    reason: str


def read_headers(
    root: Path,
    recordings: Sequence[Recording],
    min_seconds: float,
    listed: Collection[str] = (),
) -> Iterator[tuple[Recording, Utterance | Skipped]]:
    """Reads the durations of recordings, several at a time.

    Arguments
    ---------
    root : Path
        The data folder.
    recordings : sequence of Recording
        The recordings to read.
    min_seconds : float
        Shortest recording to use, seconds.
    listed : collection of str
        Splits whose recordings may be as short as `LISTED_SECONDS`.

    Yields
    ------
    tuple
        Each recording, in the order given, with the row of its manifest or why it is
        skipped.
    """

    shortest = min(min_seconds, LISTED_SECONDS)

    def read(batch: Sequence[Recording]) -> list[Utterance | Skipped]:
        return [
            _read_header(root, one, shortest if one.split in listed else min_seconds)
            for one in batch
        ]

    batches = (recordings[i : i + BATCH] for i in range(0, len(recordings), BATCH))
    path_of: dict[tuple[str, str], str] = {}  # IDs are unique within a split
    progress = tqdm(
        total=len(recordings), desc="Reading headers", unit="file", disable=None
    )
    pool = ThreadPoolExecutor()
    try:
        with progress:
            waiting = iter(recordings)
            for results in pool.map(read, batches):
                for result in results:
                    recording = next(waiting)
                    if isinstance(result, Utterance):
                        key = recording.split, result.id
                        if twin := path_of.get(key):
                            result = Skipped(result.path, f"has the ID of {twin}")
                        else:
                            path_of[key] = result.path
                    yield recording, result
                progress.update(len(results))
    finally:
        # After Ctrl-C, queued files are not read.
        pool.shutdown(cancel_futures=True)


def _read_header(
    root: Path, recording: Recording, min_seconds: float
) -> Utterance | Skipped:
    path = recording.path
    if any(map(UNUSABLE_NAME.search, (path, recording.id, recording.speaker))):
        return Skipped(
            path,
            "has a name with $, a tab, a line end, a leading or double space, ' => ', "
            "or bytes that are not UTF-8",
        )
    full_path = os.path.join(root, path)
    try:
        # soundfile.info takes 1.5 times as long.
        with soundfile.SoundFile(full_path) as file:
            frames, rate = _length(file), file.samplerate
    except soundfile.LibsndfileError as error:
        return Skipped(path, _why_unreadable(full_path, error))
    except TypeError:  # from soundfile, for raw audio without a header
        return Skipped(path, "cannot be decoded: raw audio without a header")
    if frames >= MAX_FRAMES:
        return Skipped(path, "does not declare its length; convert it again")
    if not frames:
        return Skipped(path, "holds no samples")
    start, stop = 0, frames
    if recording.stretch:
        start, stop = recording.stretch.at(rate, frames)
    if not 0 <= start < stop <= frames:
        return Skipped(
            path, f"has no samples {start} to {stop} ({recording.id}), only {frames}"
        )
    duration = (stop - start) / rate
    if duration < min_seconds:
        limit = f"under min_seconds {min_seconds}"
        if min_seconds <= LISTED_SECONDS:
            limit = "too short to embed"
        return Skipped(path, f"is {duration:.3f} s long, {limit}")
    return Utterance(recording.id, duration, path, start, stop, recording.speaker)


def _length(file: soundfile.SoundFile) -> int:
    """Number of samples in a file. If an MP3 does not declare it, libsndfile makes an
    estimate; if that is too high, the samples are counted."""
    if file.format != "MP3":
        return file.frames
    with contextlib.suppress(soundfile.LibsndfileError):
        file.seek(file.frames - 1)
        if len(file.read(1)):
            return file.frames
    file.seek(0)
    count = 0
    while n_read := len(file.read(BLOCK)):
        count += n_read
    return count


def _why_unreadable(path: str, error: soundfile.LibsndfileError) -> str:
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        return "is a broken link" if os.path.islink(path) else "does not exist"
    except OSError as problem:
        return f"cannot be read: {problem.strerror}"
    return f"cannot be decoded: {error.error_string}" if size else "is empty"


def report_skipped(
    root: Path,
    path: Path,
    skipped: Sequence[Skipped],
    n_files: int,
    max_bad_share: float,
) -> None:
    """Writes the list of skipped files, and warns of them or fails.

    Arguments
    ---------
    root : Path
        The data folder.
    path : Path
        The CSV to write.
    skipped : sequence of Skipped
        The files that are left out.
    n_files : int
        How many files there are.
    max_bad_share : float
        Largest share of them that may be left out.

    Raises
    ------
    RunError
        If more are left out.
    """
    rows = [Skipped(printable(s.path), s.reason) for s in skipped]
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Skipped._fields)
        writer.writerows(rows)
    if not rows:
        return
    count = f"{len(rows)} of {n_files} audio files ({len(rows) / n_files:.2%})"
    if len(rows) > max_bad_share * n_files:
        raise RunError(
            f"data_folder {root}: {count} are unusable, over max_bad_share "
            f"{max_bad_share:.2%}; the first, {rows[0].path}, {rows[0].reason}; "
            f"all are in {path}: repair them or raise max_bad_share"
        )
    for row in rows[:N_NAMED]:
        logger.warning("skipped %s: %s", row.path, row.reason)
    logger.warning("skipped %s of %s; all are in %s", count, root, path)
