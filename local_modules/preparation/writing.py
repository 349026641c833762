"""Writes the manifests and trial lists of a corpus."""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from speechbrain.utils.logger import get_logger

from local_modules.errors import InputError, RunError
from local_modules.files import check_writable, replacing
from local_modules.manifest import Utterance, check_splits, write_manifest
from local_modules.preparation.lists import (
    TrialFile,
    draw_split_trials,
    read_trial_file,
)
from local_modules.preparation.recordings import (
    LISTED_SECONDS,
    Recording,
    Skipped,
    read_headers,
    report_skipped,
)
from local_modules.preparation.splits import (
    Splits,
    draw_speakers,
    longest_of_each_file,
    remove_speakers,
    speakers_of,
    with_two,
)
from local_modules.trials import TrialList, write_trials

logger = get_logger(__name__)

MANIFESTS = {"train": "train.csv", "valid": "valid.csv", "test": "test.csv"}
TRIALS = {"valid": "valid_trials.txt", "test": "test_trials.txt"}
SKIPPED = "skipped.csv"
PREPARED = "prepared.json"
MIN_SPEAKERS = 2
LONG_SECONDS = 120.0


@dataclass(frozen=True)
class Settings:
    """What the user may choose for every corpus.

    Arguments
    ---------
    seed : int
        Seed of the speakers held out and of the trials drawn.
    valid_share, test_share : float
        Share of the speakers to hold out of training for a split that the corpus
        lacks; of those outside of `test` if it has that split, else of all.
    min_seconds : float
        Shortest recording to use, seconds.
    max_bad_share : float
        Largest share of the audio files that may be unusable.

    Raises
    ------
    InputError
        If a value makes no sense.
    """

    seed: int
    valid_share: float
    test_share: float
    min_seconds: float
    max_bad_share: float

    def __post_init__(self):
        for split in ("valid", "test"):
            share = getattr(self, f"{split}_share")
            if not 0 < share < 1:
                raise InputError(
                    f"{split}_share is {share}; it must be over 0 and under 1"
                )
        if not self.min_seconds >= LISTED_SECONDS:
            raise InputError(
                f"min_seconds is {self.min_seconds}; it must be {LISTED_SECONDS} or "
                "more: what is shorter cannot be embedded"
            )
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(
                f"max_bad_share is {self.max_bad_share}; it must be 0 to 1, such as "
                "0.01"
            )


@dataclass
class Corpus:
    """What a corpus holds, before its audio is read.

    Arguments
    ---------
    root : Path
        The data folder.
    layout : str
        What is expected there, for messages.
    recordings : list of Recording
        The utterances of all splits. A split without any is held out of `train`.
    skipped : list of Skipped
        Audio that can't be used, as known before headers are read.
    lists : dict of str to TrialFile
        Trial lists by split.
    test_speakers : collection of str
        Speakers to test on, wherever their recordings are listed, if the corpus has no
        recordings for `test` alone.
    """

    root: Path
    layout: str
    recordings: list[Recording]
    skipped: list[Skipped] = field(default_factory=list)
    lists: dict[str, TrialFile] = field(default_factory=dict)
    test_speakers: Collection[str] = ()


def write_corpus(corpus: Corpus, save_folder: str, settings: Settings) -> None:
    """Writes `{train,valid,test}.csv` and `{valid,test}_trials.txt`.

    Returns immediately if they were written from the same recordings with the same
    settings.

    Arguments
    ---------
    corpus : Corpus
        What to prepare.
    save_folder : str
        Where to write.
    settings : Settings
        How to prepare it.

    Raises
    ------
    InputError
        If there are too few speakers for three splits, or a trial list is wrong.
    RunError
        If more than `max_bad_share` of the audio files are unusable, or all of a split.
    """
    save = Path(save_folder)
    record = {
        "settings": asdict(settings),
        "audio": _fingerprint(corpus),
        "trials": {split: file.checksum() for split, file in corpus.lists.items()},
    }
    if _is_prepared(save, record):
        logger.info("%s is up to date with %s", save, corpus.root)
        return
    check_writable(save)
    # The record is removed first and written last: it vouches for complete files.
    (save / PREPARED).unlink(missing_ok=True)

    found = {recording.split for recording in corpus.recordings}
    splits: Splits = {split: [] for split in found | {"train"}}
    skipped = []
    # The error rate of a list includes its short recordings.
    listed = found & corpus.lists.keys()
    headers = read_headers(corpus.root, corpus.recordings, settings.min_seconds, listed)
    for recording, result in headers:
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            splits[recording.split].append(result)
    skipped += corpus.skipped
    n_files = len(corpus.recordings) + len(corpus.skipped)
    report_skipped(
        corpus.root, save / SKIPPED, skipped, n_files, settings.max_bad_share
    )
    for split in found:
        if not splits[split]:  # else training speakers would take its place
            raise RunError(
                f"data_folder {corpus.root}: none of the recordings of the {split} "
                f"split can be used; {save / SKIPPED} says why"
            )
    trial_lists = _complete(corpus, splits, {s.path for s in skipped}, settings)
    check_splits(splits)
    _tell_of_long(splits)

    for split, name in MANIFESTS.items():
        write_manifest(save / name, splits[split])
    for split, name in TRIALS.items():
        write_trials(save / name, trial_lists[split])
    with replacing(save / PREPARED) as file:
        json.dump(record, file, indent=2)


def _fingerprint(corpus: Corpus) -> dict[str, int | str]:
    """A fingerprint of the audio and of how the corpus lists it."""
    digest = hashlib.sha256()
    n_bytes = 0
    for one in chain(corpus.skipped, corpus.recordings):
        try:
            status = os.stat(os.path.join(corpus.root, one.path))
            size, time = status.st_size, status.st_mtime_ns
        except OSError:
            size, time = 0, 0
        n_bytes += size
        line = f"{one}\0{size}\0{time}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return {
        "files": len(corpus.recordings) + len(corpus.skipped),
        "bytes": n_bytes,
        "sha256": digest.hexdigest(),
    }


def _is_prepared(save: Path, record: dict) -> bool:
    try:
        found = json.loads((save / PREPARED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = (*MANIFESTS.values(), *TRIALS.values(), SKIPPED)
    return found == record and all((save / name).is_file() for name in names)


def _complete(
    corpus: Corpus, splits: Splits, skipped: Collection[str], settings: Settings
) -> dict[str, TrialList]:
    """Moves speakers from train into the splits that are missing, and finds trials.

    The speakers are those of the split's trial list, and for `test` those that the
    corpus names, if any; otherwise they are drawn, for `test` from those that the list
    of `valid` does not name.
    """
    if "test" in splits:
        remove_speakers(splits, "test")
    # A recording without a known session counts as a session of its own.
    preferred = with_two(
        (r.speaker, r.session or r.path)
        for r in corpus.recordings
        if r.path not in skipped
    )
    n_speakers = len(speakers_of(splits["train"]))
    shares = {"test": settings.test_share, "valid": settings.valid_share}
    trial_lists = {}
    for split, share in shares.items():
        pool = splits.get(split, splits["train"])
        if split in corpus.lists:
            trial_lists[split] = read_trial_file(
                corpus.lists[split], pool, skipped, settings.max_bad_share
            )
        if split not in splits:
            held_out = set(corpus.test_speakers) if split == "test" else set()
            if split in corpus.lists:
                held_out |= _named(trial_lists[split], pool)
            elif not held_out:
                free = pool
                if split == "test" and "valid" in corpus.lists.keys() - splits.keys():
                    valid = read_trial_file(
                        corpus.lists["valid"], pool, skipped, settings.max_bad_share
                    )
                    named = _named(valid, pool)
                    free = [u for u in pool if u.speaker not in named]
                n_held_out = max(MIN_SPEAKERS, round(share * n_speakers))
                held_out = draw_speakers(free, preferred, n_held_out, settings.seed)
            n_left = len(speakers_of(pool) - held_out)
            if n_left < MIN_SPEAKERS:
                raise InputError(
                    f"data_folder {corpus.root}: {n_speakers} speakers are too few: "
                    f"{split} takes {len(held_out)} and leaves {n_left} to train on; "
                    f"train, valid and test need {MIN_SPEAKERS} each; {corpus.layout}"
                )
            splits[split] = [u for u in pool if u.speaker in held_out]
            remove_speakers(splits, split)
    for split in TRIALS:
        splits[split] = _verifiable(split, splits[split])
    held_out = {u.id for split in TRIALS for u in splits[split]}
    session_of = {
        r.path: r.session
        for r in corpus.recordings
        if r.session is not None and r.id in held_out
    }
    for split in TRIALS.keys() - trial_lists.keys():
        trial_lists[split] = draw_split_trials(
            split, splits[split], session_of, settings.seed
        )
    return trial_lists


def _named(trials: TrialList, utterances: list[Utterance]) -> set[str]:
    """The speakers whose utterances are in a list."""
    paths = {*trials.enrol, *trials.test}
    return {u.speaker for u in utterances if u.path in paths}


def _verifiable(split: str, utterances: list[Utterance]) -> list[Utterance]:
    kept = longest_of_each_file(utterances)
    if len(kept) < len(utterances):
        logger.warning(
            "%s: of files with several utterances, only the longest is kept: %d of %d",
            split,
            len(kept),
            len(utterances),
        )
    return kept


def _tell_of_long(splits: Splits) -> None:
    for split, utterances in splits.items():
        seconds = [u.duration for u in utterances if u.duration > LONG_SECONDS]
        if seconds:
            logger.warning(
                "%s: %d recordings are longer than %.0f minutes, the longest has %.0f; "
                "recordings are embedded whole, valid_batch_size at a time: if memory "
                "may run out, cut them or lower --valid_batch_size",
                split,
                len(seconds),
                LONG_SECONDS / 60,
                max(seconds) / 60,
            )
