"""Turns VoxCeleb1, VoxCeleb2 or both into manifests and trial lists.

An utterance is `id10001/<video>/00001.wav`, anywhere below the data folder. See
README.md beside this file.
"""

import os
import re
from pathlib import Path
from sys import intern

from speechbrain.utils.logger import get_logger

from local_modules.errors import InputError
from local_modules.preparation.convert import convert, converted_path
from local_modules.preparation.lists import TrialFile, find_trial_file
from local_modules.preparation.recordings import Recording, Skipped
from local_modules.preparation.scan import find_audio
from local_modules.preparation.writing import Corpus, Settings, write_corpus
from local_modules.trials import TrialList, read_trials

logger = get_logger(__name__)

LAYOUT = (
    "expected wav/id10001/<video>/00001.wav (VoxCeleb1) and "
    "aac/id00012/<video>/00001.m4a (VoxCeleb2), in folders of any name"
)
UTTERANCE = re.compile(r"(?:^|.*/)(id(\d{5})/([^/]+)/\d{5})\.(?i:wav|flac|m4a)")
LISTED = re.compile(r"id1\d{4}/[^/]+/\d{5}\.wav")
# VoxCeleb2 has its own test speakers; the archives keep them in a folder of this name.
TEST_FOLDER = re.compile(
    r"(^|.*/)(test(_(aac|txt|wav|flac|m4a))?|(?i:v(ox|c)\w*_test(_\w+)?))/"
)
SUFFIXES = frozenset({".wav", ".flac", ".m4a"})
PARTS = {"1": {1}, "2": {2}, "1+2": {1, 2}}

# The speakers of VoxCeleb1 whose names begin with E.
TEST_SPEAKERS = frozenset(f"id{number}" for number in range(10270, 10310))
OWN_LISTS = ("veri_test2.txt", "veri_test.txt")
N_TRIALS = {
    37_720: "VoxCeleb1-O",
    37_611: "VoxCeleb1-O, cleaned",
    581_480: "VoxCeleb1-E",
    579_818: "VoxCeleb1-E, cleaned",
    552_536: "VoxCeleb1-H",
    550_894: "VoxCeleb1-H, cleaned",
}


def prepare(
    data_folder: str,
    save_folder: str,
    parts: str | int = "1",
    corpus_seed: int = 1986,
    trials: str | None = None,
    valid_share: float = 0.02,
    min_seconds: float = 0.5,
    max_bad_share: float = 0.01,
    skip_prep: bool = False,
) -> None:
    """Writes `{train,valid,test}.csv` and `{valid,test}_trials.txt`.

    VoxCeleb2's m4a files are converted to FLAC in `data_folder/converted`, which takes
    hours and can be interrupted. Returns immediately if all is done.

    Arguments
    ---------
    data_folder : str
        The corpora, or a folder with links to them.
    save_folder : str
        Where to write.
    parts : str
        What to train on: 1, 2 or 1+2.
    corpus_seed : int
        Seed of the speakers held out for validation and of the trials drawn.
    trials : str, optional
        VoxCeleb1-O, -E or -H, cleaned or not. Without it, `veri_test2.txt` or
        `veri_test.txt` in the data folder is used where it exists, and otherwise
        trials are drawn from the 40 test speakers of VoxCeleb1.
    valid_share : float
        Share of all speakers, including test speakers, to hold out for validation.
    min_seconds : float
        Shortest recording to use, seconds.
    max_bad_share : float
        Largest share of the audio files that may be unusable.
    skip_prep : bool
        True does nothing.

    Raises
    ------
    InputError
        If a setting, the layout of the folder or the trial list is wrong, or ffmpeg is
        missing.
    RunError
        If more than `max_bad_share` of the audio files are unusable.
    """
    if skip_prep:
        return
    if str(parts) not in PARTS:
        raise InputError(f"parts is {parts}; it must be 1, 2 or 1+2")
    settings = Settings(
        corpus_seed, valid_share, valid_share, min_seconds, max_bad_share
    )
    root = Path(data_folder)
    list_path = find_trial_file(root, trials, OWN_LISTS)
    tested, lists = set(TEST_SPEAKERS), {}
    if list_path:
        tested |= _speakers(_read_list(list_path))
        lists["test"] = TrialFile(list_path, _id_of_name)
    # A list with other speakers than those 40 is -E or -H: all of VoxCeleb1.
    all_of_1 = tested > TEST_SPEAKERS
    if all_of_1 and str(parts) == "1":
        raise InputError(
            f"{list_path}: tests on speakers of all VoxCeleb1, which leaves none to "
            "train on with parts 1; use --parts 2, or the list veri_test2.txt"
        )
    path_of, skipped = _find(root)
    if all_of_1:
        tested |= {one[:7] for one in path_of if _part(one) == 1}
    path_of = {
        one: path
        for one, path in path_of.items()
        if one[:7] in tested or _part(one) in PARTS[str(parts)]
    }
    tests_of_2 = {
        one
        for one, path in path_of.items()
        if _part(one) == 2 and TEST_FOLDER.match(path)
    }
    if tests_of_2:
        logger.info("left out %d utterances of VoxCeleb2's test", len(tests_of_2))
        for one in tests_of_2:
            del path_of[one]
    wanted = PARTS[str(parts)] - ({1} if all_of_1 else set())
    lacking = wanted - {_part(one) for one in path_of if one[:7] not in tested}
    if lacking:
        part = min(lacking)
        beside = ""
        if part == 2 and tests_of_2:
            beside = f", only {len(tests_of_2)} utterances in a folder of its test"
        raise InputError(
            f"data_folder {root}: parts is {parts}, and there is nothing of VoxCeleb"
            f"{part} to train on{beside}; add VoxCeleb{part} dev or use other parts"
        )
    if not any(one[:7] in tested for one in path_of):
        raise InputError(
            f"data_folder {root}: holds no recording of a test speaker, id10270 to "
            "id10309 of VoxCeleb1; add vox1_test_wav"
        )
    skipped += _convert(root, path_of)
    recordings = [
        Recording(one, path, intern(one[:7]), session=one.split("/")[1])
        for one, path in sorted(path_of.items())
    ]
    corpus = Corpus(root, LAYOUT, recordings, skipped, lists, tested)
    write_corpus(corpus, save_folder, settings)


def _part(utterance_id: str) -> int:
    """The part of an utterance: VoxCeleb1 has numbers from 10001, VoxCeleb2 below."""
    return 1 if utterance_id >= "id10001" else 2


def _id_of_name(name: str) -> str:
    return os.path.splitext(name)[0]


def _read_list(path: Path) -> TrialList:
    trials = read_trials(path)
    for name in (*trials.enrol, *trials.test):
        if not LISTED.fullmatch(name):
            raise InputError(
                f"{path}: names {name}; a list of VoxCeleb1 has names such as "
                "id10270/x6uYqmx31kE/00001.wav (lists of the first release, with the "
                "speakers' names in them, are obsolete: use veri_test2.txt)"
            )
    kind = N_TRIALS.get(len(trials), "not a known list, by its length")
    logger.info("%s: %d trials, %s", path, len(trials), kind)
    return trials


def _speakers(trials: TrialList) -> set[str]:
    return {name.split("/")[0] for name in (*trials.enrol, *trials.test)}


def _find(root: Path) -> tuple[dict[str, str], list[Skipped]]:
    """The file of each utterance; if there are two, one that libsndfile reads."""
    found: dict[str, str] = {}
    skipped = []
    for path in find_audio(root, LAYOUT, SUFFIXES):
        match = UTTERANCE.fullmatch(path)
        if match is None:
            skipped.append(Skipped(path, "is not named id10001/<video>/00001.wav"))
            continue
        utterance_id = match[1]
        other = found.setdefault(utterance_id, path)
        if other == path:
            continue
        if _is_m4a(other):
            found[utterance_id] = path
        elif not _is_m4a(path):
            skipped.append(Skipped(path, f"has the ID of {other}"))
    return found, skipped


def _is_m4a(path: str) -> bool:
    return path.lower().endswith(".m4a")


def _convert(root: Path, path_of: dict[str, str]) -> list[Skipped]:
    """Converts m4a files, and replaces their paths by those of the new files."""
    to_convert = {one: path for one, path in path_of.items() if _is_m4a(path)}
    bad = convert(root, to_convert)
    paths_of_bad = {skipped.path for skipped in bad}
    for utterance_id, path in to_convert.items():
        if path in paths_of_bad:
            del path_of[utterance_id]
        else:
            path_of[utterance_id] = converted_path(utterance_id)
    return bad
