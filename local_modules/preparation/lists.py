"""Trial lists of a corpus: its own, or drawn."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, compress, islice, zip_longest
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
from speechbrain.utils.logger import get_logger

from local_modules.errors import InputError, RunError
from local_modules.files import sha256
from local_modules.manifest import Utterance
from local_modules.preparation.splits import longest_of_each_file
from local_modules.trials import TrialList, draw_trials, read_trials

logger = get_logger(__name__)

N_COMPARED = 30  # recordings of a speaker that may always be compared


class TrialFile(NamedTuple):
    """A corpus' own trial list.

    Arguments
    ---------
    path : Path
        The file.
    id_of : callable | None
        Maps a name in the list to an utterance's ID. None if the list has paths
        relative to the data folder.
    """

    path: Path
    id_of: Callable[[str], str] | None = None

    def checksum(self) -> str:
        """The checksum of the file's content."""
        try:
            return sha256(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None


def find_trial_file(
    root: Path, trials: str | None, names: Sequence[str]
) -> Path | None:
    """The trial list to use: the one that the user names, or the corpus' own.

    Arguments
    ---------
    root : Path
        The data folder.
    trials : str | None
        The list that the user names.
    names : sequence of str
        Where the corpus' own may lie below `root`, by preference.

    Returns
    -------
    Path | None
        None if there is none.

    Raises
    ------
    InputError
        If the list that the user names does not exist.
    """
    if trials is not None:
        if not Path(trials).is_file():
            raise InputError(
                f"trials {trials}: is not a file; "
                "expected a list of `label enrol_path test_path` lines, or null"
            )
        return Path(trials)
    return next((root / name for name in names if (root / name).is_file()), None)


def own_trial_files(
    root: Path,
    trials: str | None,
    names: Sequence[str] = ("trials.txt",),
    id_of: Callable[[str], str] | None = None,
) -> dict[str, TrialFile]:
    """The trial lists of a user's own corpus: that of the test split, as found by
    `find_trial_file`, and `valid_trials.txt`.

    Arguments
    ---------
    root, trials, names
        As of `find_trial_file`.
    id_of : callable | None
        As of `TrialFile`.

    Returns
    -------
    dict
        By split; missing lists are left out.
    """
    paths = {
        "test": find_trial_file(root, trials, names),
        "valid": find_trial_file(root, None, ["valid_trials.txt"]),
    }
    return {split: TrialFile(path, id_of) for split, path in paths.items() if path}


def read_trial_file(
    file: TrialFile,
    utterances: Sequence[Utterance],
    skipped: Collection[str],
    max_bad_share: float,
) -> TrialList:
    """Reads a list and leaves out the trials of recordings that can't be used.

    Arguments
    ---------
    file : TrialFile
        The list.
    utterances : sequence of Utterance
        Of the split. Of several in one file, only the longest may be compared.
    skipped : collection of str
        Paths of recordings that are skipped for a known reason.
    max_bad_share : float
        Largest share of the recordings in the list that may be missing.

    Returns
    -------
    TrialList
        With paths relative to the data folder.

    Raises
    ------
    InputError
        If the list is malformed or names an utterance that is not its file's longest,
        or if no target or no non-target trial is left.
    RunError
        If too many recordings are missing.
    """
    longest = longest_of_each_file(utterances)
    if file.id_of is None:
        path_of = {u.path: u.path for u in longest}
        trials = read_trials(file.path, path_of.keys() | skipped)
    else:
        of_id = {u.path: u.path for u in longest} | {u.id: u.path for u in longest}
        shorter = {u.id for u in utterances} - of_id.keys()
        trials = read_trials(
            file.path,
            is_name=lambda name: name in skipped or file.id_of(name) in of_id,
        )
        named = dict.fromkeys((*trials.enrol, *trials.test))
        path_of = {name: of_id.get(file.id_of(name)) for name in named}
        missing = [name for name, path in path_of.items() if path is None]
        cut = [name for name in missing if file.id_of(name) in shorter]
        if cut:
            raise InputError(
                f"{file.path}: {len(cut)} of its {len(named)} recordings, such as "
                f"{cut[0]}, share a file with a longer one; only the longest of each "
                "file can be compared: cut the files, or leave these out"
            )
        if len(missing) > max_bad_share * len(named):
            raise RunError(
                f"{file.path}: {len(missing)} of its {len(named)} recordings can't be "
                f"used, over max_bad_share {max_bad_share:.2%}; the first is "
                f"{missing[0]}: repair them or raise max_bad_share"
            )
        if missing:
            logger.warning(
                "%s: %d of its %d recordings can't be used; the first is %s",
                file.path,
                len(missing),
                len(named),
                missing[0],
            )
    enrol = [path_of.get(name) for name in trials.enrol]
    test = [path_of.get(name) for name in trials.test]
    keep = np.array(
        [a is not None and b is not None for a, b in zip(enrol, test, strict=True)]
    )
    labels = trials.labels[keep]
    if not keep.all():
        logger.warning(
            "%s: %d of %d trials are left out, because their recordings were skipped",
            file.path,
            len(trials) - len(labels),
            len(trials),
        )
        if labels.all() or not labels.any():
            raise InputError(
                f"{file.path}: without the skipped recordings, {labels.sum()} target "
                f"and {(~labels).sum()} non-target trials are left; an error rate "
                "needs both"
            )
    return TrialList(labels, list(compress(enrol, keep)), list(compress(test, keep)))


def draw_split_trials(
    split: str,
    utterances: Sequence[Utterance],
    session_of: Mapping[str, str],
    seed: int,
) -> TrialList:
    """Draws the trials of a split, targets across sessions if it has them.

    If a speaker has more recordings than the median speaker, and more than
    `N_COMPARED`, only some are compared. All pairs are equally likely, so a speaker
    with a hundred times as many would dominate the error rate.

    Arguments
    ---------
    split : str
        Its name, for messages.
    utterances : sequence of Utterance
        The utterances to compare.
    session_of : mapping of str to str
        Sessions by path; paths without one are sessions of their own.
    seed : int
        Seed of the draw.

    Returns
    -------
    TrialList
        The trials.

    Raises
    ------
    InputError
        If none can be drawn.
    """
    speaker_of = {u.path: u.speaker for u in utterances}
    sessions = {path: session_of.get(path, path) for path in speaker_of}
    n_all = len(speaker_of)
    speaker_of = _some_of_each_speaker(speaker_of, sessions, seed)
    if len(speaker_of) < n_all:
        logger.info(
            "%s: trials are drawn from %d of %d recordings, because some speakers "
            "have very many",
            split,
            len(speaker_of),
            n_all,
        )
    counts = Counter(
        speaker for speaker, _ in {(speaker_of[p], sessions[p]) for p in speaker_of}
    )
    n_several = sum(n > 1 for n in counts.values())
    if 0 < n_several < len(counts) / 2:
        logger.warning(
            "%s: only %d of %d speakers were recorded in two sessions; all target "
            "trials are theirs",
            split,
            n_several,
            len(counts),
        )
    if not n_several and len(counts) < len(speaker_of):
        logger.warning(
            "%s: no speaker was recorded in two sessions, so target trials are within "
            "one, and the error rate looks better than it is",
            split,
        )
        sessions = None
    try:
        return draw_trials(speaker_of, seed, session_of=sessions)
    except InputError as error:
        raise InputError(f"{split} split: {error}") from None


def _some_of_each_speaker(
    speaker_of: Mapping[str, str], session_of: Mapping[str, str], seed: int
) -> dict[str, str]:
    """Limits the recordings of each speaker to the median over speakers, or to
    `N_COMPARED` if that is more; takes them evenly from the sessions."""
    counts = Counter(speaker_of.values()).values()
    most = max(N_COMPARED, median_low(counts or [0]))

    def rank(path: str) -> bytes:
        return hashlib.sha256(f"{seed}:{path}".encode()).digest()

    sessions_of = defaultdict(lambda: defaultdict(list))
    for path in sorted(speaker_of, key=rank):
        sessions_of[speaker_of[path]][session_of[path]].append(path)
    kept = {}
    for speaker, sessions in sessions_of.items():
        in_turn = chain.from_iterable(zip_longest(*sessions.values()))
        some = islice((path for path in in_turn if path is not None), most)
        kept |= dict.fromkeys(some, speaker)
    return kept
