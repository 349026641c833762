"""Reading utterances: whole for embeddings, random crops for training."""

import hashlib
import io
import math
import zlib
from collections.abc import Sequence

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.utils.logger import get_logger
from torch.nn.utils.rnn import pad_sequence

from local_modules.errors import InputError
from local_modules.shards.reading import ShardReader

logger = get_logger(__name__)

MAX_TABLE = 10_000_000  # filter taps of torchaudio's resampling, some 80 MB
# Full scale is 1, or 2**31 in a file of unscaled integers. The spectrum of samples that
# are much louder overflows, and with it the loss of a whole batch.
LOUDEST = 1e10


class Normalizer(AudioNormalizer):
    """SpeechBrain's AudioNormalizer, to mono at `sample_rate`, also from rates that
    share hardly a factor with it, such as 44 101 Hz: there, torchaudio's table of
    filters would take gigabytes; the one filter of scipy's polyphase method takes
    megabytes.

    Example
    -------
    >>> Normalizer(16000)(torch.randn(44101, 2), 44101).shape
    torch.Size([16000])
    """

    def __call__(self, audio: torch.Tensor, sample_rate: int) -> torch.Tensor:
        """As AudioNormalizer: [time] or [time, channels] to [time]."""
        common = math.gcd(sample_rate, self.sample_rate)
        up, down = self.sample_rate // common, sample_rate // common
        if up * down <= MAX_TABLE:
            return super().__call__(audio, sample_rate)
        resampled = resample_poly(self._mix(audio).numpy(), up, down)
        return torch.from_numpy(resampled.astype(np.float32))


class SpeechCache:
    """Arrays kept in memory, up to a limit: decoded utterances, and features of whole
    ones. Beyond it, they are computed anew each time; docs/data.md has the cost.

    Arguments
    ---------
    gib : float
        The limit, in GiB.

    Example
    -------
    >>> cache = SpeechCache(gib=1e-6)
    >>> cache.put("short", np.zeros(500, dtype=np.int16), 16000)
    >>> cache.put("long", np.zeros(5000, dtype=np.int16), 16000)
    >>> cache.get("short")[1], cache.get("long")
    (16000, None)
    """

    def __init__(self, gib: float):
        self.free_bytes = int(gib * 2**30)
        self._kept: dict[tuple, tuple] = {}

    def get(self, key) -> tuple | None:
        """An array and what was stored with it, or None if it isn't cached."""
        return self._kept.get(key)

    def put(self, key, array: np.ndarray | torch.Tensor, beside) -> None:
        """Stores an array (such as samples) and what belongs to it (such as their
        sample rate); the first that doesn't fit closes the cache."""
        if array.nbytes > self.free_bytes:
            self.free_bytes = 0
            return
        self._kept[key] = array, beside
        self.free_bytes -= array.nbytes


def check_speeds(speeds: Sequence[float]) -> None:
    """Checks the playback speeds of a training.

    Raises
    ------
    InputError
        They are not numbers from 0.5 to 2, one repeats, or 1 is missing.
    """
    are_speeds = all(isinstance(s, (int, float)) and 0.5 <= s <= 2 for s in speeds)
    if not are_speeds or len({*speeds}) < len(speeds) or 1 not in speeds:
        raise InputError(
            f"--speaker_speeds {speeds}: has to be numbers from 0.5 to 2.0, each "
            "once, 1.0 among them, as in [1.0,0.9,1.1]"
        )


def speaker_at(speaker: str, speed: float) -> str:
    """Name of the speaker when a speaker's recordings are played at a speed.

    At speeds other than 1, pitch and formants are those of another person, who counts
    as an additional speaker (Yamamoto et al., Interspeech 2019, "Speaker augmentation
    and bandwidth extension for deep speaker embedding").

    Example
    -------
    >>> speaker_at("ann", 1.0), speaker_at("ann", 0.9)
    ('ann', 'ann@0.9')
    """
    return speaker if speed == 1 else f"{speaker}@{speed:g}"


class UtteranceReader:
    """Reads one utterance of a manifest, mono and at the model's sample rate.

    Arguments
    ---------
    sample_rate : int
        Sample rate to resample to, in Hz.
    crop_seconds : float | None
        Length of the random crop; a shorter utterance is repeated to this length, not
        padded with zeros. None reads the whole utterance.
    seed : int
        With the epoch and the utterance's ID, this decides where a crop starts,
        whichever worker reads it and in whatever order; so a resumed training has the
        same crops as one without a restart.
    cache : SpeechCache | None
        Keeps decoded speech; any number of readers may share it.
    shards : ShardReader | None
        Holds each utterance as a separate file, read instead of the manifest's.
    speeds : sequence of float
        Playback speeds: an utterance has one of them, and in the next epoch the next.
        If a pass has several epochs, an utterance is in one of them, and its speed is
        random.

    Raises
    ------
    InputError
        A speed is not from 0.5 to 2.0 or is repeated, or 1.0 is missing.

    Example
    -------
    >>> path = str(getfixture("tmpdir").join("tone.wav"))
    >>> soundfile.write(path, np.sin(np.arange(8000) / 10), 8000)
    >>> UtteranceReader(16000, crop_seconds=1.5)("tone", path, 0, 8000).shape
    torch.Size([24000])
    """

    def __init__(
        self,
        sample_rate: int,
        crop_seconds: float | None = None,
        seed: int = 0,
        cache: SpeechCache | None = None,
        shards: ShardReader | None = None,
        speeds: Sequence[float] = (1.0,),
    ):
        check_speeds(speeds)
        self.normalizer = Normalizer(sample_rate)
        self.sample_rate = sample_rate
        self.crop_seconds = crop_seconds
        self.seed = seed
        self.cache = cache
        self.shards = shards
        self.speeds = speeds
        # Shared with data workers, which may outlive an epoch.
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Advances to the crops of `epoch`."""
        self.epoch[0] = epoch

    def speed(self, utt_id: str) -> float:
        """How fast an utterance is played in this epoch."""
        turn = int(self.epoch) + zlib.crc32(utt_id.encode())
        return self.speeds[turn % len(self.speeds)]

    def __call__(self, utt_id: str, path: str, start: int, stop: int):
        """Reads samples `start` to `stop` (in the file's own rate) of `path`.

        Returns
        -------
        torch.Tensor | None
            Waveform, [time]; None, and a warning that names the file, if it can't be
            decoded.
        """
        try:
            samples, rate = self._samples(utt_id, path, int(start), int(stop))
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            logger.warning(f"{path}: skipped, can't be decoded ({error})")
            return None
        wav = torch.from_numpy(samples)
        if wav.dtype == torch.int16:
            wav = wav.float().div_(32768)
        wav = self.normalizer(wav, _rate_at(self.speed(utt_id), rate))
        if self.crop_seconds is None:
            return wav
        n_samples = round(self.crop_seconds * self.sample_rate)
        if len(wav) < n_samples:
            wav = wav.repeat(-(-n_samples // len(wav)))
        return wav[:n_samples]

    def _samples(self, utt_id, path, start, stop) -> tuple[np.ndarray, int]:
        """The crop, or all, of an utterance at the file's own rate, all channels."""
        key = (path, start, stop)
        if self.cache and (kept := self.cache.get(key)):
            samples, rate = kept
            first, last = self._crop(utt_id, rate, len(samples))
            return samples[first:last], rate
        if self.shards:
            path = io.BytesIO(self.shards.read(utt_id))
            start, stop = 0, stop - start
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            # Integers take half the memory; for 16-bit PCM they are exact.
            dtype = "int16" if file.subtype == "PCM_16" else "float32"
            first, last = self._crop(utt_id, rate, stop - start)
            if self.cache and self.cache.free_bytes > 0:
                samples = _read(file, start, stop, dtype)
                self.cache.put(key, samples, rate)
                return samples[first:last], rate
            return _read(file, start + first, start + last, dtype), rate

    def _crop(self, utt_id: str, rate: int, length: int) -> tuple[int, int]:
        """First and last sample of this epoch's crop of an utterance."""
        if self.crop_seconds is None:
            return 0, length
        n_samples = round(self.crop_seconds * _rate_at(self.speed(utt_id), rate))
        spare = length - n_samples
        if spare <= 0:
            return 0, length
        # Seeding a random generator would take longer than everything else here.
        key = f"{self.seed}/{int(self.epoch)}/{utt_id}".encode()
        number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        first = number * (spare + 1) >> 64
        return first, first + n_samples


def _rate_at(speed: float, rate: int) -> int:
    """The sample rate that a recording of `rate` has when it is played at a speed."""
    # In steps of 100 Hz: between rates without a large common divisor resampling takes
    # up to a hundred times longer.
    return rate if speed == 1 else 100 * round(speed * rate / 100)


def _read(file: soundfile.SoundFile, start: int, stop: int, dtype: str) -> np.ndarray:
    file.seek(start)
    samples = file.read(stop - start, dtype=dtype)
    if not 0 < stop - start <= len(samples):
        raise RuntimeError(f"{len(samples)} samples instead of {stop - start}")
    if dtype == "float32" and not (np.abs(samples) < LOUDEST).all():
        raise RuntimeError(f"samples that are NaN, infinite or beyond {LOUDEST:g}")
    return samples


def _padded(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch and relative lengths, without SpeechBrain's padded copy of each waveform
    before it is copied into the batch."""
    lengths = [len(tensor) for tensor in tensors]
    longest = max(lengths)
    relative = torch.tensor([length / longest for length in lengths])
    return pad_sequence(tensors, batch_first=True), relative


class ReadableBatch(PaddedBatch):
    """A padded batch of the utterances whose `sig` could be read; `lost` has the IDs of
    the others. If none could, `is_empty` is True, and there is nothing else."""

    def __init__(self, examples, *args, **kwargs):
        readable = [example for example in examples if example["sig"] is not None]
        self.is_empty = not readable
        if readable:
            super().__init__(readable, *args, padding_func=_padded, **kwargs)
        self.lost = [e["id"] for e in examples if e["sig"] is None]

    def pin_memory(self):
        """As in SpeechBrain, unless the batch is empty."""
        return self if self.is_empty else super().pin_memory()
