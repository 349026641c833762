"""Packs a manifest's recordings into tar shards, which WebDataset reads too."""

import io
import json
import random
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from filelock import FileLock
from tqdm import tqdm

from local_modules.errors import InputError, RunError
from local_modules.files import check_writable, remove_parts, replacing, sha256
from local_modules.manifest import Utterance, read_manifest
from local_modules.preparation.recordings import Skipped, report_skipped
from local_modules.shards.index import (
    CorruptMember,
    Member,
    Shard,
    read_index,
    write_index,
)

LOSSLESS = {"PCM_16", "PCM_24"}  # kept exactly by FLAC
MAX_FLAC_CHANNELS = 8


def pack(
    manifest: Path,
    data_folder: Path,
    folder: Path,
    per_shard: int = 1000,
    seed: int = 0,
    original: bool = False,
    max_bad_share: float = 0.01,
) -> list[Shard]:
    """Packs the recordings of a manifest, in a random order.

    The same arguments give the same bytes, however often it was interrupted: a shard
    appears whole or not at all, and existing ones are kept.

    Arguments
    ---------
    manifest : Path
        `SPLIT.csv`, whose name the shards and their index take: `SPLIT-000000.tar` …
        and, written last, `SPLIT.json`.
    data_folder : Path
        Root of its paths.
    folder : Path
        Where the shards go.
    per_shard : int
        Utterances per shard.
    seed : int
        Seed of the order.
    original : bool
        Whether an utterance that is a whole file keeps its bytes; otherwise it becomes
        FLAC if that is lossless.
    max_bad_share : float
        Share of the recordings that may be unreadable and left out.

    Returns
    -------
    list of Shard
        All shards.

    Raises
    ------
    InputError
        An argument is out of range, the manifest is malformed, or the folder holds
        shards of another manifest or other settings.
    RunError
        Too many recordings are unreadable.
    """
    utterances = sorted(read_manifest(manifest), key=lambda u: u.id)
    if per_shard < 1:
        raise InputError(f"--per_shard {per_shard}: has to be at least 1")
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"--max_bad_share {max_bad_share}: has to be 0 to 1")
    settings = {
        "manifest_sha256": sha256(manifest),
        "per_shard": per_shard,
        "seed": seed,
        "original": original,
    }
    check_writable(folder)
    # A second packer waits.
    with FileLock(folder / f".{manifest.stem}.lock"):
        return _pack(
            utterances, data_folder, folder, manifest.stem, settings, max_bad_share
        )


def _pack(
    utterances: list[Utterance],
    data_folder: Path,
    folder: Path,
    split: str,
    settings: dict,
    max_bad_share: float,
) -> list[Shard]:
    """Packs what isn't packed yet."""
    per_shard, original = settings["per_shard"], settings["original"]
    index = folder / f"{split}.json"
    if index.exists():
        earlier, shards = read_index(index, str(index))
        if earlier != settings:
            raise InputError(
                f"{index}: shards of another manifest or of other settings; pack with "
                "those, or into another folder"
            )
        kept = [s for s in shards or [] if (folder / s.name).exists()]
        if shards and kept == shards:
            return shards
        for shard in kept:  # a damaged one would be taken for a good one
            if sha256(folder / shard.name) != shard.sha256:
                (folder / shard.name).unlink()
    write_index(index, settings, None)
    random.Random(settings["seed"]).shuffle(utterances)
    shards, skipped, incomplete = [], [], []
    progress = tqdm(total=len(utterances), desc=f"Packing {split}", disable=None)
    with progress:
        for first in range(0, len(utterances), per_shard):
            number, part = len(shards), utterances[first : first + per_shard]
            path = folder / f"{split}-{number:06d}.tar"
            reasons = {}
            if not path.exists():
                remove_parts(path)  # of a packer that was killed
                for skip in _write_shard(path, number, part, data_folder, original):
                    reasons[skip.path] = skip.reason
            shard = _scan(path)
            shards.append(shard)
            lacking = [
                Skipped(u.path, reasons.get(u.path, f"is not in {path.name}"))
                for u in part
                if u.id not in shard.members
            ]
            if lacking:
                incomplete.append(path)
                skipped += lacking
            progress.update(len(part))
    report = folder / f"{split}.skipped.csv"
    try:
        report_skipped(data_folder, report, skipped, len(utterances), max_bad_share)
    except RunError:
        for path in incomplete:  # to be packed again once repaired
            path.unlink()
        raise
    write_index(index, settings, shards)
    return shards


def verify(folder: Path) -> Iterator[str]:
    """Compares all shards of a folder with their checksums.

    Arguments
    ---------
    folder : Path
        Folder of the shards and their indices.

    Yields
    ------
    str
        What is wrong with a shard, with the first damaged recording in it.

    Raises
    ------
    InputError
        There is no index, or an incomplete one.
    """
    indices = sorted(folder.glob("*.json"))
    if not indices:
        raise InputError(f"{folder}: holds no index of shards")
    shards = []
    for index in indices:
        _, found = read_index(index, str(index))
        if found is None:
            raise InputError(f"{index}: packing is not finished; pack it again")
        shards += found
    for shard in tqdm(shards, desc="Verifying", disable=None):
        path = folder / shard.name
        try:
            if sha256(path) == shard.sha256:
                continue
        except OSError as error:
            yield f"{path}: {error.strerror}"
            continue
        damaged = []
        for utt_id, member in shard.members.items():
            try:
                member.read(path)
            except CorruptMember:
                damaged.append(utt_id)
        if damaged:
            yield f"{path}: {len(damaged)} recordings are damaged, first {damaged[0]}"
        else:
            yield f"{path}: is damaged outside its recordings"


def encode(path: Path, start: int, stop: int, original: bool) -> tuple[str, bytes]:
    """An utterance as a file of its own that decodes to the same samples.

    Arguments
    ---------
    path : Path
        The recording.
    start, stop : int
        Range of the utterance, in samples at the recording's own rate.
    original : bool
        Whether to keep the bytes of a whole file.

    Returns
    -------
    suffix : str
        Extension of the new file, without the dot.
    content : bytes
        The new file.

    Raises
    ------
    OSError or RuntimeError
        It can't be decoded.
    """
    with soundfile.SoundFile(path) as file:
        is_whole = (start, stop) == (0, file.frames)
        fits = file.subtype in LOSSLESS and file.channels <= MAX_FLAC_CHANNELS
        if is_whole and (original or not fits or file.format == "FLAC"):
            return file.format.lower(), path.read_bytes()
        file.seek(start)
        # int32 holds both kinds of integers, in its upper bits.
        samples = file.read(stop - start, dtype="int32" if fits else "float32")
        if not 0 < stop - start == len(samples):
            raise RuntimeError(f"{len(samples)} samples instead of {stop - start}")
        # Not WAV, into which libsndfile writes a timestamp.
        kind, subtype = ("FLAC", file.subtype) if fits else ("AU", "FLOAT")
        content = io.BytesIO()
        soundfile.write(content, samples, file.samplerate, subtype, format=kind)
    return kind.lower(), content.getvalue()


def _write_shard(
    path: Path,
    number: int,
    utterances: Sequence[Utterance],
    data_folder: Path,
    original: bool,
) -> list[Skipped]:
    """Writes a shard atomically; returns the unreadable recordings left out of it."""

    def encoded(utterance: Utterance):
        try:
            source = data_folder / utterance.path
            return encode(source, utterance.start, utterance.stop, original)
        except (OSError, RuntimeError) as error:
            return Skipped(utterance.path, f"cannot be decoded ({error})")

    skipped = []
    pool = ThreadPoolExecutor()
    try:
        with (
            replacing(path, binary=True) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            results = pool.map(encoded, utterances)
            for place, (u, result) in enumerate(zip(utterances, results, strict=True)):
                if isinstance(result, Skipped):
                    skipped.append(result)
                    continue
                suffix, audio = result
                about = {"id": u.id, "spk_id": u.speaker, "duration": u.duration}
                # WebDataset takes files with the same key for one sample.
                key = f"{number:06d}-{place:06d}"
                for name, content in (
                    (f"{key}.json", json.dumps(about).encode()),
                    (f"{key}.{suffix}", audio),
                ):
                    info = tarfile.TarInfo(name)  # no owner, time 0: same bytes always
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    finally:
        # After Ctrl-C, what is queued is not encoded.
        pool.shutdown(cancel_futures=True)
    return skipped


def _scan(path: Path) -> Shard:
    """Reads the members of a shard."""
    members = {}
    try:
        with tarfile.open(path) as tar:
            while about := tar.next():
                utt_id = json.load(tar.extractfile(about))["id"]
                info = tar.next()
                crc = zlib.crc32(tar.extractfile(info).read())
                members[utt_id] = Member(info.offset_data, info.size, crc)
    except (tarfile.TarError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: is not a shard in our format ({error}); delete it and pack again"
        ) from None
    return Shard(path.name, sha256(path), members)
