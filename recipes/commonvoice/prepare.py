"""Turns a language of Common Voice into manifests and trial lists.

See README.md beside this file for the layout.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from sys import intern

from local_modules.errors import InputError
from local_modules.preparation.recordings import Recording, Skipped
from local_modules.preparation.scan import check_folder
from local_modules.preparation.writing import Corpus, Settings, write_corpus

LAYOUT = "expected validated.tsv and clips/ of one language, such as cv-corpus-*/en"
TABLE = "validated.tsv"


def prepare(
    data_folder: str,
    save_folder: str,
    corpus_seed: int = 1986,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    min_seconds: float = 0.5,
    max_bad_share: float = 0.01,
    skip_prep: bool = False,
) -> None:
    """Writes `{train,valid,test}.csv` and `{valid,test}_trials.txt`.

    Returns immediately if they were written from the same recordings with the same
    settings.

    Arguments
    ---------
    data_folder : str
        The folder of a language.
    save_folder : str
        Where to write.
    corpus_seed : int
        Seed of the speakers held out and of the trials drawn.
    valid_share, test_share : float
        Share of the speakers to hold out.
    min_seconds : float
        Shortest recording to use, seconds.
    max_bad_share : float
        Largest share of the audio files that may be unusable.
    skip_prep : bool
        True does nothing.

    Raises
    ------
    InputError
        If a setting or the layout of the folder is wrong.
    RunError
        If more than `max_bad_share` of the audio files are unusable.
    """
    if skip_prep:
        return
    settings = Settings(
        corpus_seed, valid_share, test_share, min_seconds, max_bad_share
    )
    root = Path(data_folder)
    check_folder(root, LAYOUT)
    if not (root / TABLE).is_file():
        raise InputError(f"data_folder {root}: has no {TABLE}; {LAYOUT}")
    recordings, skipped = [], []
    for one in _read_table(root / TABLE):
        (skipped if isinstance(one, Skipped) else recordings).append(one)
    write_corpus(Corpus(root, LAYOUT, recordings, skipped), save_folder, settings)


def _read_table(path: Path) -> Iterator[Recording | Skipped]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # Quotation marks in sentences have no meaning.
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = {"client_id", "path"} - {*(reader.fieldnames or ())}
            if missing:
                raise InputError(f"{path}: has no column {', '.join(sorted(missing))}")
            for row in reader:
                if not row["client_id"] or not row["path"]:
                    where = f"{TABLE}:{reader.line_num}"
                    yield Skipped(where, "lacks client_id or path")
                    continue
                name, suffix = os.path.splitext(row["path"])
                # The first releases left the suffix out.
                clip = f"clips/{name}{suffix or '.mp3'}"
                yield Recording(name, clip, intern(row["client_id"]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
