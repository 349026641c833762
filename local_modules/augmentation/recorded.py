"""Recorded noises and room responses, from a folder into memory."""

import functools
import random
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from speechbrain.utils.logger import get_logger
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from local_modules.audio import Normalizer, UtteranceReader
from local_modules.errors import InputError
from local_modules.manifest import Utterance
from local_modules.preparation.recordings import Recording, read_headers
from local_modules.preparation.scan import find_audio

logger = get_logger(__name__)

NOISE_SECONDS = 10  # of a stretch of noise
NOISE_GIB = 1.0  # kept in memory; 9 hours at 16 kHz
VOICES = 3, 7  # in babble
RESPONSE_SECONDS = 1.0  # of a room response, from its direct path on
MAX_RESPONSES = 1000  # their spectra take 1/4 GiB for crops of 3 s
FULL_SCALE = 32767


class Kind(NamedTuple):
    """A kind of noise: MUSAN's name for its folder, the range of its signal-to-noise
    ratio in training, in dB, and whether several recordings are summed; as in Snyder
    et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP 2018."""

    name: str
    snr_low: float
    snr_high: float
    is_babble: bool = False


KINDS = (
    Kind("noise", 0.0, 15.0),
    Kind("music", 5.0, 15.0),
    Kind("speech", 13.0, 20.0, is_babble=True),
)


class Noises(NamedTuple):
    """The noises of a folder, in memory.

    Arguments
    ---------
    samples : torch.Tensor
        16-bit integers, [stretches, time], each stretch scaled to full range.
    kinds : torch.Tensor
        [kinds, 4]: the first stretch of each kind, how many there are, and the range of
        the signal-to-noise ratio, in dB.
    """

    samples: torch.Tensor
    kinds: torch.Tensor


def find_noises(folder: str) -> dict[Kind, tuple[str, ...]]:
    """The recordings of a folder of noises, by kind.

    Arguments
    ---------
    folder : str
        MUSAN (openslr.org/17), the folder that it was unpacked in, or any folder,
        whose noises are then all of the first kind.

    Returns
    -------
    dict
        Paths relative to the folder, by `Kind`.

    Raises
    ------
    InputError
        There are none, or some lie beside MUSAN's three folders.
    """
    layout = "expected noises, in noise/, music/ and speech/ as in MUSAN, or anywhere"
    paths = find_audio(Path(folder), layout, key="noise_folder")
    for home in ("", "musan/"):
        found = {
            kind: tuple(p for p in paths if p.startswith(f"{home}{kind.name}/"))
            for kind in KINDS
        }
        n_found = sum(map(len, found.values()))
        # Anything may lie beside the folder musan.
        if n_found == len(paths) or (home and n_found):
            return {kind: of_kind for kind, of_kind in found.items() if of_kind}
        if all(found.values()):
            other = min({*paths}.difference(*found.values()))
            raise InputError(
                f"noise_folder {folder}: {other} lies beside noise/, music/ and "
                "speech/; move it to one of them, or these three to a folder musan/"
            )
    return {KINDS[0]: tuple(paths)}


def find_responses(folder: str) -> tuple[str, ...]:
    """The room responses of a folder.

    Arguments
    ---------
    folder : str
        RIRS_NOISES (openslr.org/28), whose noises are left out by their names, or any
        folder.

    Returns
    -------
    tuple of str
        Paths relative to the folder.

    Raises
    ------
    InputError
        There are none.
    """
    layout = "expected room responses, as in RIRS_NOISES, or anywhere"
    paths = find_audio(Path(folder), layout, key="rir_folder")
    found = tuple(
        path
        for path in paths
        if "pointsource_noises/" not in path and "_noise_" not in Path(path).name
    )
    if not found:
        raise InputError(f"rir_folder {folder}: holds noises only; {layout}")
    return found


@functools.cache
def read_noises(folder: str, sample_rate: int) -> Noises:
    """Stretches of noise from a folder; if its recordings exceed the memory limit, a
    random sample, always the same one. A recording that is shorter is repeated.

    Arguments
    ---------
    folder : str
        As in `find_noises`.
    sample_rate : int
        Sample rate to resample to, in Hz.

    Returns
    -------
    Noises
        The stretches, up to the same number of each kind.

    Raises
    ------
    InputError
        The recordings of a kind can't be read.
    """
    found = find_noises(folder)
    counts = [f"{len(paths)} {kind.name}" for kind, paths in found.items()]
    logger.info("%s: %s recordings", folder, ", ".join(counts))
    bytes_each = 2 * NOISE_SECONDS * sample_rate
    limit = int(NOISE_GIB * 2**30 / len(found) / bytes_each)
    rng = random.Random(0)
    stretches, kinds = [], []
    for kind, paths in found.items():
        first = len(stretches)
        stretches += _stretches(folder, paths, kind.is_babble, sample_rate, limit, rng)
        count = len(stretches) - first
        if not count:
            raise InputError(
                f"noise_folder {folder}: {paths[0]} and the rest are unusable"
            )
        kinds.append((first, count, kind.snr_low, kind.snr_high))
    return Noises(torch.stack(stretches), torch.tensor(kinds))


def _stretches(folder, paths, is_babble, sample_rate, limit, rng) -> list[torch.Tensor]:
    """Stretches of recordings or, for babble, sums of them."""
    places = [
        (row, number)
        for row in _rows(folder, paths)
        for number in range(max(1, int(row.duration / NOISE_SECONDS)))
    ]
    reader = UtteranceReader(sample_rate, crop_seconds=NOISE_SECONDS)

    def read(row: Utterance, number: int) -> torch.Tensor | None:
        length = row.stop * NOISE_SECONDS / row.duration
        first = round(number * length)
        stop = min(row.stop, round(first + length))
        return reader(row.id, str(Path(folder, row.path)), first, stop)

    rng.shuffle(places)
    stretches = []
    for place in tqdm(places[:limit], desc=f"Reading {folder}", disable=None):
        mixed = [place]
        if is_babble:
            mixed += rng.choices(places, k=rng.randint(*VOICES) - 1)
        waves = [wave for wave in starmap(read, mixed) if wave is not None]
        if waves and (noise := sum(waves)).any():
            stretches.append((noise * (FULL_SCALE / noise.abs().max())).short())
    return stretches


def _rows(folder: str, paths: Sequence[str]) -> list[Utterance]:
    """The manifest rows of recordings, from their headers."""
    recordings = [Recording(path, path, speaker="") for path in paths]
    rows = []
    for _, row in read_headers(Path(folder), recordings, min_seconds=0.0):
        if isinstance(row, Utterance):
            rows.append(row)
        else:
            logger.warning("%s: skipped %s, it %s", folder, row.path, row.reason)
    return rows


@functools.cache
def read_responses(folder: str, sample_rate: int) -> torch.Tensor:
    """Room responses of a folder; if there are more than `MAX_RESPONSES`, a random
    sample, always the same one. Of several channels, the first is used.

    Arguments
    ---------
    folder : str
        As in `find_responses`.
    sample_rate : int
        Sample rate to resample to, in Hz.

    Returns
    -------
    torch.Tensor
        [responses, time], each from its strongest sample on, the direct path.

    Raises
    ------
    InputError
        None of them can be read.
    """
    paths = list(find_responses(folder))
    random.Random(0).shuffle(paths)
    normalizer = Normalizer(sample_rate)
    n_samples = round(RESPONSE_SECONDS * sample_rate)
    responses = []
    for path in tqdm(paths[:MAX_RESPONSES], desc=f"Reading {folder}", disable=None):
        try:
            wave, rate = soundfile.read(
                Path(folder, path), dtype="float32", always_2d=True
            )
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            logger.warning("%s/%s: skipped, can't be decoded (%s)", folder, path, error)
            continue
        wave = normalizer(torch.from_numpy(wave[:, 0].copy()), rate)
        if wave.any():
            direct = wave.abs().argmax()
            responses.append(wave[direct : direct + n_samples] / wave[direct])
    if not responses:
        raise InputError(f"rir_folder {folder}: {paths[0]} and the rest are unusable")
    return pad_sequence(responses, batch_first=True)
