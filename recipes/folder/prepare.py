"""Turns a folder of recordings into manifests and trial lists.

The folder is `DIR/<speaker>/**/<audio>`, or `DIR/<split>/<speaker>/**/<audio>`. See
README.md beside this file for what becomes of splits and trial lists.
"""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from local_modules.errors import InputError, RunError
from local_modules.manifest import Utterance, check_splits, replacing, write_manifest
from local_modules.trials import TrialList, draw_trials, read_trials, write_trials

logger = get_logger(__name__)

SPLIT_FOLDERS = ("train", "valid", "dev", "test")
LAYOUT = (
    "expected <speaker>/**/<audio>, or train/<speaker>/**/<audio> "
    "and so on for valid or dev, and test"
)
MANIFESTS = {"train": "train.csv", "valid": "valid.csv", "test": "test.csv"}
TRIALS = {"valid": "valid_trials.txt", "test": "test_trials.txt"}
SKIPPED = "skipped.csv"
PREPARED = "prepared.json"

# libsndfile names its formats, not the suffixes they go by; headerless data is left
# out because it has no rate to read.
AUDIO_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    | {".aif", ".aifc", ".oga", ".opus", ".snd", ".sph"}
)
# Trial lists are split at white space and at line ends, and SpeechBrain replaces
# `$name` in a manifest and drops spaces that begin a field.
UNUSABLE_NAME = re.compile(r"\$|[^\S ]|  |(^|/) |[\ud800-\udfff]")
BATCH = 64
N_NAMED = 5
MIN_SPEAKERS = 2

Splits = dict[str, list[Utterance]]


class AudioFile(NamedTuple):
    """A file below the data folder that is named like audio.

    A link that leads nowhere has size -1.
    """

    path: str
    size: int
    mtime_ns: int


class Skipped(NamedTuple):
    """A file that is left out, and why."""

    path: str
    reason: str


def prepare(
    data_folder: str,
    save_folder: str,
    corpus_seed: int = 1986,
    trials: str | None = None,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    min_seconds: float = 0.5,
    max_bad_share: float = 0.01,
) -> None:
    """Writes `{train,valid,test}.csv` and `{valid,test}_trials.txt`.

    Returns at once where they were written from the same recordings with the same
    settings.

    Arguments
    ---------
    data_folder : str
        The recordings.
    save_folder : str
        Where to write.
    corpus_seed : int
        Seed of the speakers held out and of the trials drawn.
    trials : str, optional
        Trial list of the test split, with paths relative to `data_folder`. Without
        it, `data_folder/trials.txt` is used where it exists.
    valid_share, test_share : float
        Share of the training speakers to hold out for a split that has no folder.
    min_seconds : float
        Shortest recording to use, seconds.
    max_bad_share : float
        Largest share of the audio files that may be unusable.

    Raises
    ------
    InputError
        If a setting, the layout of the folder or a trial list is wrong.
    RunError
        If more than `max_bad_share` of the audio files are unusable.
    """
    shares = {"test": test_share, "valid": valid_share}
    _check_settings(shares, min_seconds, max_bad_share)
    root, save = Path(data_folder), Path(save_folder)
    files, others = _find_audio(root)
    lists = _find_trial_lists(root, trials)
    record = {
        "settings": {
            "seed": corpus_seed,
            "shares": shares,
            "min_seconds": min_seconds,
            "max_bad_share": max_bad_share,
        },
        "audio": _fingerprint(files),
        "trials": {
            split: hashlib.sha256(path.read_bytes()).hexdigest()
            for split, path in lists.items()
        },
    }
    if _is_prepared(save, record):
        logger.info("%s is up to date with %s", save, root)
        return
    if others:
        logger.info("%s: ignored what is no audio: %s", root, _tally(others))

    split_of_folder = _split_folders(root, files)
    n_above = 1 if split_of_folder else 0
    utterances, skipped = _read_headers(root, files, n_above, min_seconds)
    try:
        save.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"save_folder {save}: {error.strerror}") from None
    # The record goes first and comes back last: what it vouches for is whole.
    (save / PREPARED).unlink(missing_ok=True)
    _report_skipped(root, save / SKIPPED, skipped, len(files), max_bad_share)

    splits = _group(utterances, split_of_folder)
    left_out = {s.path for s in skipped}
    trial_lists = _hold_out(root, splits, lists, left_out, shares, corpus_seed)
    check_splits(splits)
    for split in TRIALS.keys() - trial_lists.keys():
        trial_lists[split] = _draw_trials(splits[split], split, corpus_seed)

    for split, name in MANIFESTS.items():
        write_manifest(save / name, splits[split])
    for split, name in TRIALS.items():
        write_trials(save / name, trial_lists[split])
    with replacing(save / PREPARED) as file:
        json.dump(record, file, indent=2)
    for split in MANIFESTS:
        logger.info("%s: %s", split, _describe(splits[split], trial_lists.get(split)))


def _check_settings(
    shares: dict[str, float], min_seconds: float, max_bad_share: float
) -> None:
    for split, share in shares.items():
        if not 0 < share < 1:
            raise InputError(f"{split}_share is {share}; it must be over 0 and under 1")
    if not min_seconds >= 0:
        raise InputError(f"min_seconds is {min_seconds}; it must be 0 or more")
    if not 0 <= max_bad_share <= 1:
        raise InputError(
            f"max_bad_share is {max_bad_share}; it must be 0 to 1, such as 0.01"
        )


def _find_audio(root: Path) -> tuple[list[AudioFile], Counter[str]]:
    """Finds the audio below a folder, and counts the suffixes of all else."""
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"data_folder {root}: {problem}; {LAYOUT}")
    audio: list[AudioFile] = []
    others: Counter[str] = Counter()
    try:
        for path, entry in _walk(str(root), "", frozenset()):
            suffix = os.path.splitext(path)[1].lower()
            if suffix not in AUDIO_SUFFIXES:
                others[suffix or "no suffix"] += 1
                continue
            try:
                status = entry.stat()
                audio.append(AudioFile(path, status.st_size, status.st_mtime_ns))
            except FileNotFoundError:
                audio.append(AudioFile(path, -1, 0))
    except OSError as error:
        raise InputError(
            f"data_folder {root}: {error.filename} cannot be read: {error.strerror}"
        ) from None
    if not audio:
        raise InputError(
            f"data_folder {root}: holds no audio that libsndfile reads (found "
            f"{_tally(others) or 'nothing'}); {LAYOUT}, as .wav, .flac, .ogg or .mp3"
        )
    return audio, others


def _tally(suffixes: Counter[str]) -> str:
    return _printable(", ".join(f"{n} {s}" for s, n in suffixes.most_common(N_NAMED)))


def _walk(
    folder: str, prefix: str, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, os.DirEntry]]:
    """Yields every file and its path, in an order that is the same everywhere."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that holds it
        return
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):  # such as the ._x.wav of macOS, no audio
            continue
        path = prefix + entry.name
        if entry.is_dir():
            yield from _walk(entry.path, f"{path}/", above | {here})
        elif entry.is_file() or entry.is_symlink():
            yield path, entry


def _find_trial_lists(root: Path, trials: str | None) -> dict[str, Path]:
    if trials is not None and not os.path.isfile(trials):
        raise InputError(
            f"trials {trials}: is not a file; "
            "expected a list of `label enrol_path test_path` lines, or null"
        )
    lists = {
        "test": root / "trials.txt" if trials is None else Path(trials),
        "valid": root / "valid_trials.txt",
    }
    return {split: path for split, path in lists.items() if path.is_file()}


def _fingerprint(files: Sequence[AudioFile]) -> dict[str, int | str]:
    digest = hashlib.sha256()
    for file in files:
        line = f"{file.path}\0{file.size}\0{file.mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return {
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "sha256": digest.hexdigest(),
    }


def _is_prepared(save: Path, record: dict) -> bool:
    try:
        found = json.loads((save / PREPARED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = (*MANIFESTS.values(), *TRIALS.values(), SKIPPED)
    return found == record and all((save / name).is_file() for name in names)


def _split_folders(root: Path, files: Sequence[AudioFile]) -> dict[str, str]:
    """Says which split each split folder holds; nothing where there are none."""
    folders = [name for name in SPLIT_FOLDERS if (root / name).is_dir()]
    depth = 2 if folders else 1
    if all(file.path.count("/") < depth for file in files):
        raise InputError(
            f"data_folder {root}: holds {len(files)} audio files, such as "
            f"{_printable(files[0].path)}, in no speaker folder; {LAYOUT}"
        )
    if not folders:
        return {}
    beside = {f.path.split("/")[0] for f in files if "/" in f.path} - set(folders)
    if beside:
        raise InputError(
            f"data_folder {root}: {_printable(min(beside))}/ lies beside "
            f"{folders[0]}/; {LAYOUT}: move it, or rename {folders[0]}/ "
            "if that is a speaker"
        )
    if "train" not in folders:
        raise InputError(
            f"data_folder {root}: has {folders[0]}/ and no train/; {LAYOUT}"
        )
    if {"valid", "dev"} <= set(folders):
        raise InputError(
            f"data_folder {root}: has both valid/ and dev/; keep one of them, "
            "or rename dev/ to test/"
        )
    dev = "valid" if "test" in folders else "test"
    return {name: dev if name == "dev" else name for name in folders}


def _read_headers(
    root: Path, files: Sequence[AudioFile], n_above: int, min_seconds: float
) -> tuple[list[Utterance], list[Skipped]]:
    """Turns files into utterances; speaker folders lie `n_above` folders down."""

    def read(batch: Sequence[AudioFile]) -> list[Utterance | Skipped]:
        return [_read_header(root, file, n_above, min_seconds) for file in batch]

    batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    utterances: dict[str, Utterance] = {}
    skipped: list[Skipped] = []
    progress = tqdm(total=len(files), desc="Reading headers", unit="file", disable=None)
    with progress, ThreadPoolExecutor() as pool:
        for results in pool.map(read, batches):
            for result in results:
                if isinstance(result, Skipped):
                    skipped.append(result)
                elif result.id in utterances:
                    twin = utterances[result.id].path
                    skipped.append(Skipped(result.path, f"has the ID of {twin}"))
                else:
                    utterances[result.id] = result
            progress.update(len(results))
    return list(utterances.values()), skipped


def _read_header(
    root: Path, file: AudioFile, n_above: int, min_seconds: float
) -> Utterance | Skipped:
    folders = file.path.split("/")[n_above:-1]
    if not folders:
        return Skipped(file.path, "lies in no speaker folder")
    if UNUSABLE_NAME.search(file.path):
        return Skipped(
            file.path,
            "has a name with $, a tab, a line end, a space that begins a name or "
            "follows another, or bytes that are not UTF-8",
        )
    if file.size <= 0:
        return Skipped(file.path, "is empty" if file.size == 0 else "is a broken link")
    try:
        header = soundfile.info(str(root / file.path))
    except soundfile.LibsndfileError as error:
        return Skipped(file.path, f"cannot be decoded: {error.error_string}")
    if not header.frames:
        return Skipped(file.path, "holds no samples")
    duration = header.frames / header.samplerate
    if duration < min_seconds:
        return Skipped(
            file.path, f"is {duration:.3f} s long, under min_seconds {min_seconds}"
        )
    return Utterance(
        id=os.path.splitext(file.path)[0],
        duration=duration,
        path=file.path,
        start=0,
        stop=header.frames,
        speaker=folders[0],
    )


def _report_skipped(
    root: Path,
    path: Path,
    skipped: Sequence[Skipped],
    n_files: int,
    max_bad_share: float,
) -> None:
    """Writes the list of skipped files, and warns of them or gives up.

    Raises
    ------
    RunError
        If they are more than `max_bad_share` of all.
    """
    rows = [Skipped(_printable(s.path), s.reason) for s in skipped]
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


def _group(utterances: Sequence[Utterance], split_of_folder: dict[str, str]) -> Splits:
    """Gives each split folder's utterances to its split, or all to train."""
    if not split_of_folder:
        return {"train": list(utterances)}
    of_folder: Splits = {folder: [] for folder in split_of_folder}
    for utterance in utterances:
        of_folder[utterance.path.split("/")[0]].append(utterance)
    check_splits({f"{folder}/": group for folder, group in of_folder.items()})
    return {split_of_folder[folder]: group for folder, group in of_folder.items()}


def _hold_out(
    root: Path,
    splits: Splits,
    lists: dict[str, Path],
    skipped: Collection[str],
    shares: dict[str, float],
    seed: int,
) -> dict[str, TrialList]:
    """Moves speakers from train into the splits that are missing.

    They are the speakers of the split's trial list where there is one, otherwise
    drawn.

    Returns
    -------
    dict of str to TrialList
        What the trial lists hold.
    """
    n_speakers = len({u.speaker for u in splits["train"]})
    trial_lists = {}
    for split, share in shares.items():
        pool = splits.get(split, splits["train"])
        if split in lists:
            trial_lists[split] = _read_trials(lists[split], pool, skipped)
        if split in splits:
            continue
        if split in lists:
            listed = {*trial_lists[split].enrol, *trial_lists[split].test}
            held_out = {u.speaker for u in pool if u.path in listed}
        else:
            n_held_out = max(MIN_SPEAKERS, round(share * n_speakers))
            held_out = _draw_speakers(pool, n_held_out, seed)
        n_left = len({u.speaker for u in pool} - held_out)
        if n_left < MIN_SPEAKERS:
            raise InputError(
                f"data_folder {root}: {n_speakers} speakers are too few: {split} takes "
                f"{len(held_out)} and leaves {n_left} to train on; train, valid and "
                f"test need {MIN_SPEAKERS} each; {LAYOUT}"
            )
        splits[split] = [u for u in pool if u.speaker in held_out]
        splits["train"] = [u for u in pool if u.speaker not in held_out]
    return trial_lists


def _draw_speakers(utterances: Sequence[Utterance], n: int, seed: int) -> set[str]:
    """Draws speakers, those with two utterances first: others give no target trial.

    Each speaker has its own random rank, so one more speaker in the corpus does not
    redraw the rest.
    """
    counts = Counter(u.speaker for u in utterances)

    def rank(speaker: str) -> tuple[bool, bytes]:
        digest = hashlib.sha256(f"{seed}:{speaker}".encode()).digest()
        return counts[speaker] < 2, digest

    return set(sorted(counts, key=rank)[:n])


def _read_trials(
    path: Path, utterances: Sequence[Utterance], skipped: Collection[str]
) -> TrialList:
    """Reads a trial list and leaves out the trials of skipped recordings."""
    trials = read_trials(path, {*(u.path for u in utterances), *skipped})
    keep = np.array(
        [
            a not in skipped and b not in skipped
            for a, b in zip(trials.enrol, trials.test, strict=True)
        ]
    )
    if keep.all():
        return trials
    labels = trials.labels[keep]
    logger.warning(
        "%s: %d of %d trials are left out, their recordings were skipped",
        path,
        len(trials) - len(labels),
        len(trials),
    )
    if labels.all() or not labels.any():
        raise InputError(
            f"{path}: without the skipped recordings, {labels.sum()} target and "
            f"{(~labels).sum()} non-target trials are left; an error rate needs both"
        )
    return TrialList(
        labels=labels,
        enrol=list(compress(trials.enrol, keep)),
        test=list(compress(trials.test, keep)),
    )


def _draw_trials(utterances: Sequence[Utterance], split: str, seed: int) -> TrialList:
    try:
        return draw_trials({u.path: u.speaker for u in utterances}, seed)
    except InputError as error:
        raise InputError(f"{split} split: {error}") from None


def _describe(utterances: Sequence[Utterance], trials: TrialList | None) -> str:
    n_speakers = len({u.speaker for u in utterances})
    hours = sum(u.duration for u in utterances) / 3600
    text = f"{n_speakers} speakers, {len(utterances)} utterances, {hours:.2f} h"
    return text if trials is None else f"{text}, {len(trials)} trials"


def _printable(path: str) -> str:
    """Escapes what a UTF-8 file of one line per name cannot hold."""
    escaped = path.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\r\n]", lambda end: repr(end[0])[1:-1], escaped)
