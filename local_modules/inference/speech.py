"""Reads recordings and keeps their speech, at a model's sample rate.

A recording may hold anything. One that can't be used raises a one-line error that says
why, rather than giving a meaningless score.
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
# libsndfile reads files that have fewer samples than their header says, and only notes
# it in its log. Programs that write to a pipe leave the largest number in the header.
SIZES = r"data|Data Size|SSND|BODY|riff|Riff size"
SHORTER = re.compile(rf"^ *(?:{SIZES}) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
MAX_OGG_PAGE = 65_307  # octets
BLOCK_SECONDS = 30  # decoded at a time
MIN_SPEECH_SECONDS = 0.5
MAX_SPEECH_SECONDS = 3600.0  # more of it adds nothing
FRAME_SECONDS = 0.03
MODEL_RATES = 8000, 16_000, 32_000, 48_000  # Hz; webrtcvad supports no others
STRICTNESS = 2  # aggressiveness of webrtcvad, 0 to 3
JOIN_FRAMES, MARGIN_FRAMES = 10, 3  # short pauses stay, and a margin around speech
MIN_PEAK = 10 ** (-50 / 20)  # of full scale
MIN_SPREAD_DB = 2.0  # of the level of frames; speech has 5 or more
CLIPPED = 0.999  # of full scale
AUDIBLY_CLIPPED = 0.01  # share of samples beyond which to warn
NO_HEADER = "can't be decoded: raw audio without a header"


@dataclass(frozen=True)
class Quality:
    """Measurements of a recording.

    Arguments
    ---------
    seconds : float
        Its duration, as far as it was read.
    speech_seconds : float
        Duration of its speech.
    level_db : float
        RMS level of the speech, in dB relative to full scale.
    clipped : float
        Share of the speech's samples at full scale.
    """

    seconds: float
    speech_seconds: float
    level_db: float
    clipped: float

    @property
    def warning(self) -> str | None:
        """Why answers about it are less reliable, if they are."""
        if self.clipped <= AUDIBLY_CLIPPED:
            return None
        share = f"{100 * self.clipped:.0f} % of its samples"
        return f"is clipped, {share}: the answer is less reliable"


@dataclass(frozen=True)
class Speech:
    """The speech of a recording.

    Arguments
    ---------
    samples : torch.Tensor
        Mono, pauses taken out, float32, [time].
    quality : Quality
        Measurements of the recording.
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
        There is no such file; it can't be decoded, is truncated, or holds no speech or
        too little.
    """
    parts, peak, n_samples, n_speech = [], 0.0, 0, 0
    for block in _blocks(Path(path), sample_rate, MAX_CHANNELS):
        n_samples += len(block)
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
        # Without the copy, a stretch would keep its whole block in memory.
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
            f"{_db(peak):.0f} dBFS, at least {_db(MIN_PEAK):.0f} needed)"
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
    """Reads a recording, or a stretch of it, including pauses.

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
        There is no such file; it can't be decoded, is truncated or empty, ends before
        `stop`, or holds NaN or infinity.
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
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
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
            # Not file.blocks, which returns stale memory where samples are missing.
            while len(block := file.read(min(n, left), "float32", always_2d=True)):
                if not np.isfinite(block).all():
                    raise InputError(f"{path}: holds NaN or infinite samples")
                left -= len(block)
                yield normalise(torch.from_numpy(block), file.samplerate).numpy()
            if left:
                raise InputError(f"{path}: {_breaks_off(wanted - left, wanted)}")
    except TypeError:  # from soundfile, for raw audio without a header
        raise InputError(f"{path}: {NO_HEADER}") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        if reason.startswith("File does not exist"):  # even for files that exist
            reason = "Format not recognised."
        raise InputError(f"{path}: can't be decoded: {reason.strip()}") from None


def _check_header(
    path: Path, file: soundfile.SoundFile, max_channels: int | None
) -> None:
    if max_channels is not None and file.channels > max_channels:
        raise InputError(
            f"{path}: has {file.channels} channels; one or two are supported: save "
            "the one with the speaker"
        )
    low, high = RATES
    if not low <= file.samplerate <= high:
        raise InputError(
            f"{path}: has a sample rate of {file.samplerate} Hz; {low} to {high} Hz "
            "are supported"
        )
    for declared, actual in SHORTER.findall(file.extra_info):
        if int(actual) < int(declared) < 0x7FFFFFFF:
            raise InputError(f"{path}: {_breaks_off(int(actual), int(declared))}")
    if file.format == "OGG" and _ends_within_a_page(path):
        raise InputError(f"{path}: is truncated within an Ogg page")


def _ends_within_a_page(path: Path) -> bool:
    """Whether an Ogg file is truncated: it declares no length, but its pages do (RFC
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
    return f"is truncated to {100 * actual // declared} % of the length it declares"


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
    """Standard deviation of the level of frames: webrtcvad takes noise and tones for
    speech, but their level stays constant."""
    n = int(FRAME_SECONDS * sample_rate)
    # Broken files hold samples whose squares overflow float32.
    frames = samples[: len(samples) // n * n].reshape(-1, n).astype(np.float64)
    return float(np.std([_db(level) for level in np.sqrt((frames**2).mean(axis=1))]))


def _db(amplitude: float) -> float:
    return float(20 * np.log10(max(amplitude, 1e-6)))
