"""Trial lists: pairs of recordings to compare, and whether they share a speaker."""

import contextlib
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from sys import intern

import numpy as np

from local_modules.errors import InputError
from local_modules.files import replacing

VOXCELEB_LABELS = {"1": True, "0": False}
KALDI_LABELS = {"target": True, "nontarget": False}


@dataclass(frozen=True, slots=True, eq=False)
class TrialList:
    """Pairs of recordings.

    Arguments
    ---------
    labels : np.ndarray
        Booleans, shape [n_trials]; true where both are of the same speaker (target).
    enrol, test : list of str
        Paths of the two recordings of each trial, relative to the data folder; on the
        enrolment side, names of models where they have several recordings.
    lines : list of int | None
        Line number of each trial in its file.
    """

    labels: np.ndarray
    enrol: list[str]
    test: list[str]
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def read_trials(
    path: str | os.PathLike,
    known_paths: Collection[str] | None = None,
    bad_lines: list[str] | None = None,
    is_name: Callable[[str], bool] | None = None,
) -> TrialList:
    """Reads a list of `label enrol test` lines with labels 1 and 0 (VoxCeleb), or of
    `enrol test label` lines with labels target and nontarget (Kaldi) or 1 and 0
    (CN-Celeb).

    Arguments
    ---------
    path : str or os.PathLike
        The list. Blank lines are skipped.
    known_paths : collection of str | None
        The recordings that may be compared, relative to the data folder; None for any.
    bad_lines : list of str | None
        Gets a message for each unusable line, which is left out. If None, the first
        such line raises an InputError.
    is_name : callable | None
        Whether a text names a recording or a model, to split lines of names with
        spaces; default: whether it is in `known_paths`.

    Returns
    -------
    TrialList
        The trials, in the order of the file.

    Raises
    ------
    InputError
        If the file cannot be read; if a line is malformed or names a recording that
        is not known; if there is no target or no non-target trial.
    """
    known = None if known_paths is None else frozenset(known_paths)
    if is_name is None:
        is_name = (known or ()).__contains__
    labels, enrol, test, lines = [], [], [], []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    label, first, second = _parse_line(
                        line, known, is_name, f"{path}:{number}"
                    )
                except InputError as error:
                    if bad_lines is None:
                        raise
                    bad_lines.append(str(error))
                    continue
                labels.append(label)
                # A name occurs in thousands of lines.
                enrol.append(intern(first))
                test.append(intern(second))
                lines.append(number)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a trial list: {error}") from None
    for label, kind in ((True, "target"), (False, "non-target")):
        if label not in labels:
            left_out = f"; left out: {bad_lines[0]}" if bad_lines else ""
            raise InputError(
                f"{path}: has no {kind} trial (label {label:d}) among "
                f"{len(labels)}; an error rate needs both kinds{left_out}"
            )
    return TrialList(np.array(labels, dtype=bool), enrol, test, lines)


def _parse_line(
    line: str, known: frozenset[str] | None, is_name: Callable[[str], bool], where: str
) -> tuple[bool, str, str]:
    columns = line.split()
    label = VOXCELEB_LABELS.get(columns[0])
    # In Kaldi's lists, the model may be called 1.
    if label is not None and columns[-1] not in KALDI_LABELS:
        names = line.strip()[1:].strip()
    else:
        label = (KALDI_LABELS | VOXCELEB_LABELS).get(columns[-1])
        names = line.strip().removesuffix(columns[-1]).strip()
    if label is None:
        raise InputError(
            f"{where}: label is {columns[0]!r}; it must be 1 (same speaker) or 0, "
            "or at the end 1, 0, target or nontarget"
        )
    columns = names.split()
    if len(columns) > 2:
        # File names may contain spaces: split where both parts are names.
        cuts = [
            (names[: gap.start()], names[gap.end() :])
            for gap in re.finditer(r"\s+", names)
        ]
        cuts = [cut for cut in cuts if all(map(is_name, cut))]
        if len(cuts) == 1:
            columns = cuts[0]
    if len(columns) != 2:
        raise InputError(
            f"{where}: has {len(columns) + 1} columns; "
            "it must be `label enrol_path test_path`"
        )
    for name in columns:
        if known is not None and name not in known:
            example = f", such as {min(known)}" if known else ""
            raise InputError(
                f"{where}: {name} is not in this split; paths are relative "
                f"to the data folder{example}"
            )
    return label, columns[0], columns[1]


def read_enrolment(path: str | os.PathLike) -> dict[str, list[str]]:
    """Reads which recordings a model is enrolled with: `model path path …` lines.

    Arguments
    ---------
    path : str or os.PathLike
        The list. Blank lines are skipped; a model on several lines has all their
        recordings.

    Returns
    -------
    dict
        Paths by model.

    Raises
    ------
    InputError
        The file cannot be read, holds no model, or has a line without a path.
    """
    models: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                columns = line.split()
                if len(columns) == 1:
                    raise InputError(
                        f"{path}:{number}: {columns[0]} has no recording; a line must "
                        "be `model path path ...`"
                    )
                if columns:
                    models.setdefault(columns[0], []).extend(columns[1:])
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as an enrolment: {error}") from None
    if not models:
        raise InputError(f"{path}: holds no model")
    return models


def write_trials(path: str | os.PathLike, trials: TrialList) -> None:
    """Writes a trial list atomically.

    Arguments
    ---------
    path : str or os.PathLike
        The file to write.
    trials : TrialList
        The trials.
    """
    with replacing(path) as file:
        rows = zip(trials.labels, trials.enrol, trials.test, strict=True)
        for label, enrol, test in rows:
            file.write(f"{label:d} {enrol} {test}\n")


def draw_trials(
    speaker_of: Mapping[str, str],
    seed: int,
    n_max_target: int = 20_000,
    session_of: Mapping[str, str] | None = None,
) -> TrialList:
    """Draws as many target as non-target trials, the same ones on every machine.

    Target trials are all same-speaker pairs, or `n_max_target` of them where there
    are more. There are as many non-target trials, or all different-speaker pairs
    where there are fewer. No pair occurs twice, in whatever order.

    Arguments
    ---------
    speaker_of : mapping of str to str
        The speaker of each recording, by its path.
    seed : int
        Seed of the draw.
    n_max_target : int
        Maximum number of target trials.
    session_of : mapping of str to str | None
        The session of each recording, by its path; target trials are then across
        sessions, as room and microphone make recordings of one session alike. None if
        each recording is a separate session.

    Returns
    -------
    TrialList
        The targets, then the non-targets.

    Raises
    ------
    InputError
        If no speaker has two recordings (of two sessions), or if there is one speaker
        only.

    Example
    -------
    >>> trials = draw_trials({"a/1": "a", "a/2": "a", "b/1": "b"}, seed=1)
    >>> trials.labels.tolist(), trials.enrol[0], trials.test[0]
    ([True, False], 'a/1', 'a/2')
    """
    in_sessions = session_of is not None
    if not in_sessions:
        session_of = {path: path for path in speaker_of}
    paths = sorted(
        speaker_of, key=lambda path: (speaker_of[path], session_of[path], path)
    )
    # Sorted like this, the partners of recording i are ranges: its own speaker's other
    # sessions from `next_session` up to `end`, everyone else's from `end` on.
    next_session = _ends([(speaker_of[path], session_of[path]) for path in paths])
    end = _ends([speaker_of[path] for path in paths])
    n_target = int((end - next_session).sum())
    n_nontarget = int((len(paths) - end).sum())
    if not n_target:
        raise InputError(
            f"no target trial can be drawn: none of {len(set(end))} speakers has two "
            f"utterances{' of different sessions' if in_sessions else ''}"
        )
    if not n_nontarget:
        raise InputError(
            "no non-target trial can be drawn: "
            f"{speaker_of[paths[0]]} is the only speaker"
        )
    rng = random.Random(seed)
    n_drawn = min(n_target, n_max_target)
    targets = _draw_pairs(rng, next_session, end, n_drawn)
    nontargets = _draw_pairs(rng, end, np.full_like(end, len(paths)), n_drawn)
    pairs = np.concatenate([targets, nontargets])
    return TrialList(
        labels=np.arange(len(pairs)) < len(targets),
        enrol=[paths[i] for i in pairs[:, 0]],
        test=[paths[i] for i in pairs[:, 1]],
    )


def draw_trials_within(
    speaker_of: Mapping[str, str],
    group_of: Mapping[str, str],
    seed: int,
    session_of: Mapping[str, str] | None = None,
) -> TrialList:
    """Draws trials whose sides are of one group, such as a sex or a language: harder
    non-target trials.

    Arguments
    ---------
    speaker_of : mapping of str to str
        The speaker of each recording, by its path.
    group_of : mapping of str to str
        The group of each recording, by its path. A group that lacks
        target or non-target trials is left out.
    seed : int
        Seed of the draw.
    session_of : mapping of str to str | None
        As for `draw_trials`.

    Returns
    -------
    TrialList
        What `draw_trials` draws of each group, in the order of their names.

    Raises
    ------
    InputError
        There is no group of two speakers, one of them with two recordings (of two
        sessions).

    Example
    -------
    >>> people = {"a/1": "a", "a/2": "a", "b/1": "b", "c/1": "c"}
    >>> trials = draw_trials_within(people, people | {"b/1": "a"}, seed=1)
    >>> trials.labels.tolist(), trials.test
    ([True, False], ['a/2', 'b/1'])
    """
    groups: dict[str, dict[str, str]] = {}
    for path, speaker in speaker_of.items():
        groups.setdefault(group_of[path], {})[path] = speaker
    drawn = []
    for _, members in sorted(groups.items()):
        with contextlib.suppress(InputError):
            drawn.append(draw_trials(members, seed, session_of=session_of))
    if not drawn:
        raise InputError(
            f"no trials can be drawn within {len(groups)} groups: none has two "
            "speakers, one of them with two recordings"
            f"{'' if session_of is None else ' of two sessions'}"
        )
    return TrialList(
        np.concatenate([trials.labels for trials in drawn]),
        [path for trials in drawn for path in trials.enrol],
        [path for trials in drawn for path in trials.test],
    )


def _ends(groups: list) -> np.ndarray:
    """Where the group of each item ends; equal items are adjacent."""
    sizes = np.fromiter(Counter(groups).values(), dtype=np.int64)
    return np.repeat(np.cumsum(sizes), sizes)


def _draw_pairs(
    rng: random.Random, first: np.ndarray, stop: np.ndarray, n_drawn: int
) -> np.ndarray:
    """Draws from the pairs (i, j), first[i] <= j < stop[i], never listing them all."""
    last_rank = np.cumsum(stop - first)
    ranks = _draw_ranks(rng, int(last_rank[-1]), n_drawn)
    i = np.searchsorted(last_rank, ranks, side="right")
    j = stop[i] - (last_rank[i] - ranks)
    return np.stack([i, j], axis=1)


def _draw_ranks(rng: random.Random, n: int, n_drawn: int) -> np.ndarray:
    """Draws distinct numbers below n (Floyd's algorithm, CACM 30(9), 1987).

    Not by `random.sample`: of `random`, only `random()` is guaranteed to give the same
    numbers in every version of Python.
    """
    if n_drawn >= n:
        return np.arange(n)
    drawn: set[int] = set()
    for top in range(n - n_drawn, n):
        rank = int(rng.random() * (top + 1))
        drawn.add(top if rank in drawn else rank)
    return np.array(sorted(drawn))
