"""What is said in a recording: its speech alone, at a model's sample rate.

A recording from anywhere may be anything. What can't be used ends in one line that says
why, before anybody takes its score for an answer.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import webrtcvad

from local_modules.audio import Normalizer
from local_modules.errors import InputError

RATES = 4000, 192_000  # Hz
MAX_CHANNELS = 2
# libsndfile reads on where there are fewer samples than a header says, and notes it in
# its log. Programs that write to a pipe leave the largest number there.
SIZES = r"data|Data Size|SSND|BODY|riff|Riff size"
SHORTER = re.compile(rf"^ *(?:{SIZES}) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
MAX_OGG_PAGE = 65_307  # octets
BLOCK_SECONDS = 30  # decoded at a time
MIN_SPEECH_SECONDS = 0.5
MAX_SPEECH_SECONDS = 3600.0  # more of it says nothing new
FRAME_SECONDS = 0.03
MODEL_RATES = 8000, 16_000, 32_000, 48_000  # Hz; webrtcvad knows no others
STRICTNESS = 2  # of webrtcvad, 0 to 3
JOIN_FRAMES, MARGIN_FRAMES = 10, 3  # short pauses stay, and some of what is around
MIN_PEAK = 10 ** (-50 / 20)  # of full scale
MIN_SPREAD_DB = 2.0  # of the level of frames: that of speech is 5 and more
CLIPPED = 0.999  # of full scale
AUDIBLY_CLIPPED = 0.01  # share of samples beyond which a person should know
NO_HEADER = "can't be decoded: does not say what it holds"


@dataclass(frozen=True)
class Quality:
    """What a recording is like.

    Arguments
    ---------
    seconds : float
        Duration of it, as far as it was read.
    speech_seconds : float
        Of its speech.
    level_db : float
        Of the speech, in dB relative to full scale.
    clipped : float
        Share of the speech's samples at full scale.
    """

    seconds: float
    speech_seconds: float
    level_db: float
    clipped: float

    @property
    def warning(self) -> str | None:
        """What makes answers about it less sure, if anything."""
        if self.clipped <= AUDIBLY_CLIPPED:
            return None
        return f"is clipped, {100 * self.clipped:.0f} % of it: the answer is less sure"


@dataclass(frozen=True)
class Speech:
    """The speech of a recording.

    Arguments
    ---------
    samples : torch.Tensor
        Mono, pauses taken out, float32, [time].
    quality : Quality
        What the recording is like.
    """

    samples: torch.Tensor
    quality: Quality


def read_speech(path: str | os.PathLike, sample_rate: int) -> Speech:
    """Reads a recording of any length in bounded memory, and keeps its speech.

    Arguments
    ---------
    path : str or os.PathLike
        Any format that libsndfile reads, of one channel or two.
    sample_rate : int
        To resample to, in Hz; one of `MODEL_RATES`.

    Returns
    -------
    Speech

    Raises
    ------
    InputError
        There is no such file; it can't be decoded, breaks off, or holds no speech, or
        too little.
    """
    parts, peak, n_samples, n_speech = [], 0.0, 0, 0
    for block in _blocks(Path(path), sample_rate, MAX_CHANNELS):
        n_samples += len(block)
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
        # A stretch that is no copy would keep its block in memory.
        found = [stretch.copy() for stretch in _speech_of(block, sample_rate)]
        parts += found
        n_speech += sum(map(len, found))
        if n_speech > MAX_SPEECH_SECONDS * sample_rate:
            break
    seconds = n_samples / sample_rate
    if not n_samples:
        raise InputError(f"{path}: holds no samples")
    if peak < MIN_PEAK:
        raise InputError(
            f"{path}: {seconds:.1f} s of silence, or too quiet (peak "
            f"{_db(peak):.0f} dB of full scale, at least {_db(MIN_PEAK):.0f} wanted)"
        )
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    speech_seconds = len(samples) / sample_rate
    if 0 < speech_seconds < MIN_SPEECH_SECONDS:
        raise InputError(
            f"{path}: {speech_seconds:.2f} s of speech; {MIN_SPEECH_SECONDS} s are "
            "needed"
        )
    if not parts or _spread_db(samples, sample_rate) < MIN_SPREAD_DB:
        raise InputError(f"{path}: no speech in its {seconds:.1f} s")
    level_db = _db(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))
    clipped = float((np.abs(samples) >= CLIPPED).mean())
    quality = Quality(seconds, speech_seconds, level_db, clipped)
    return Speech(torch.from_numpy(samples), quality)


def read_waveform(
    path: str | os.PathLike,
    sample_rate: int,
    start: int = 0,
    stop: int | None = None,
) -> torch.Tensor:
    """Reads a recording, or a stretch of it, pauses and all.

    Arguments
    ---------
    path : str or os.PathLike
        Any format that libsndfile reads, of any number of channels.
    sample_rate : int
        To resample to, in Hz.
    start, stop : int | None
        First sample and the one after the last, at the file's own rate; None for its
        end.

    Returns
    -------
    torch.Tensor
        Mono, float32, [time].

    Raises
    ------
    InputError
        There is no such file; it can't be decoded, breaks off, ends before `stop`, or
        holds nothing, NaN or infinity.
    """
    blocks = list(_blocks(Path(path), sample_rate, start=start, stop=stop))
    if not blocks:
        raise InputError(f"{path}: holds no samples")
    return torch.from_numpy(np.concatenate(blocks))


def _blocks(
    path: Path,
    sample_rate: int,
    max_channels: int | None = None,
    start: int = 0,
    stop: int | None = None,
):
    """Mono blocks of a recording at the sample rate."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise InputError(f"{path}: is {kind}")
    if not status.st_size:
        raise InputError(f"{path}: is empty")
    normalise = Normalizer(sample_rate)
    try:
        with soundfile.SoundFile(path) as file:
            _check_header(path, file, max_channels)
            end = file.frames if stop is None else stop
            if (start, end) != (0, file.frames):
                if not 0 <= start < end <= file.frames:
                    raise InputError(
                        f"{path}: has no samples {start} to {end}, only {file.frames}"
                    )
                file.seek(start)
            left = wanted = end - start
            n = BLOCK_SECONDS * file.samplerate
            # Not file.blocks, which gives back what was in memory where samples lack.
            while len(block := file.read(min(n, left), "float32", always_2d=True)):
                if not np.isfinite(block).all():
                    raise InputError(f"{path}: holds samples that are no numbers")
                left -= len(block)
                yield normalise(torch.from_numpy(block), file.samplerate).numpy()
            if left:
                raise InputError(f"{path}: {_breaks_off(wanted - left, wanted)}")
    except TypeError:  # of what soundfile takes for samples without a header
        raise InputError(f"{path}: {NO_HEADER}") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        if reason.startswith("File does not exist"):  # so it says of some that do
            reason = "Format not recognised."
        raise InputError(f"{path}: can't be decoded: {reason.strip()}") from None


def _check_header(
    path: Path, file: soundfile.SoundFile, max_channels: int | None
) -> None:
    if max_channels is not None and file.channels > max_channels:
        raise InputError(
            f"{path}: has {file.channels} channels; one or two can be taken: save the "
            "one that the speaker is on"
        )
    low, high = RATES
    if not low <= file.samplerate <= high:
        raise InputError(
            f"{path}: has a sample rate of {file.samplerate} Hz; {low} to {high} Hz "
            "can be taken"
        )
    for declared, actual in SHORTER.findall(file.extra_info):
        if int(actual) < int(declared) < 0x7FFFFFFF:
            raise InputError(f"{path}: {_breaks_off(int(actual), int(declared))}")
    if file.format == "OGG" and _ends_within_a_page(path):
        raise InputError(f"{path}: breaks off in the middle of a page of Ogg")


def _ends_within_a_page(path: Path) -> bool:
    """Whether an Ogg file, which declares no length, was cut short: pages do (RFC
    3533, section 6)."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - MAX_OGG_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27:
        return True
    body = 27 + page[26]
    return len(page) < body + sum(page[27:body])


def _breaks_off(actual: int, declared: int) -> str:
    return f"breaks off after {100 * actual // declared} % of what it declares"


def _speech_of(block: np.ndarray, sample_rate: int) -> list[np.ndarray]:
    """The stretches of speech of a block."""
    detector = webrtcvad.Vad(STRICTNESS)
    n = int(FRAME_SECONDS * sample_rate)
    samples = (np.clip(block, -1, 1) * 32767).astype("<i2")
    voiced = np.array(
        [
            detector.is_speech(samples[i : i + n].tobytes(), sample_rate)
            for i in range(0, len(samples) - n + 1, n)
        ],
        dtype=bool,
    )
    frames = np.flatnonzero(voiced)
    if not len(frames):
        return []
    gaps = np.flatnonzero(np.diff(frames) > JOIN_FRAMES)
    starts, ends = frames[np.r_[0, gaps + 1]], frames[np.r_[gaps, -1]] + 1
    return [
        block[max(0, start - MARGIN_FRAMES) * n : (end + MARGIN_FRAMES) * n]
        for start, end in zip(starts, ends, strict=True)
    ]


def _spread_db(samples: np.ndarray, sample_rate: int) -> float:
    """How much the level of frames varies: webrtcvad takes noise and tones for speech,
    whose level stays what it is."""
    n = int(FRAME_SECONDS * sample_rate)
    # Broken files hold samples whose squares float32 can't.
    frames = samples[: len(samples) // n * n].reshape(-1, n).astype(np.float64)
    return float(np.std([_db(level) for level in np.sqrt((frames**2).mean(axis=1))]))


def _db(amplitude: float) -> float:
    return float(20 * np.log10(max(amplitude, 1e-6)))
