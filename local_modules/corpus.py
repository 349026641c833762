"""A corpus as a run sees it: three manifests and two trial lists."""

import contextlib
import hashlib
import importlib
import inspect
import json
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import recipes
from local_modules.errors import InputError
from local_modules.files import check_writable, replacing, restoring
from local_modules.manifest import Utterance, check_splits, read_manifest
from local_modules.trials import TrialList, read_trials

SEARCHED = ("train.csv", "valid.csv", "valid_trials.txt")
TRAINED = (*SEARCHED, "test.csv", "test_trials.txt")
NOTED = "corpus.json"


def prepare_corpus(settings: Mapping, check: Callable[[], None] | None = None) -> None:
    """Makes the manifests and trial lists of a corpus with the `prepare` function of
    its folder in `recipes/`.

    Arguments
    ---------
    settings : mapping
        `corpus` names the folder; `manifest_folder` and whatever parameters its
        `prepare` has are passed on.
    check : callable, optional
        Raises InputError if a run or a study that was begun can't go on with what is
        in `manifest_folder` now, which then has its earlier files again.

    Raises
    ------
    InputError
        There is no such corpus, nothing says where it lies, its `prepare` finds a
        person's mistake, or `check` does.
    """
    corpus = settings["corpus"]
    known = [
        module.name for module in pkgutil.iter_modules(recipes.__path__) if module.ispkg
    ]
    if corpus not in known:
        raise InputError(f"--corpus {corpus}: there are {', '.join(sorted(known))}")
    if settings["data_folder"] is None:
        raise InputError(f"--data_folder: say where the corpus {corpus!r} lies")
    prepare = importlib.import_module(f"recipes.{corpus}.prepare").prepare
    options = {
        name: settings[name]
        for name in inspect.signature(prepare).parameters
        if name in settings
    }
    folder = Path(settings["manifest_folder"])
    with contextlib.ExitStack() as stack:
        if check is not None and not settings.get("skip_prep"):
            check_writable(folder.parent)
            stack.enter_context(restoring(folder))
        prepare(**options | {"save_folder": str(folder)})
        if check is not None:
            check()


def licence(corpus: str) -> str:
    """Under which licence the recordings of a corpus are, in words."""
    return importlib.import_module(f"recipes.{corpus}").LICENCE


def read_corpus(
    folder: str | os.PathLike,
) -> tuple[dict[str, list[Utterance]], dict[str, TrialList]]:
    """Reads what `prepare_corpus` has made.

    Arguments
    ---------
    folder : str or os.PathLike
        The manifest folder.

    Returns
    -------
    splits : dict
        Utterances of `train`, `valid` and `test`.
    trials : dict
        Trial lists of `valid` and `test`.

    Raises
    ------
    InputError
        A speaker is in two splits, a split has too few, or a file is malformed.
    """
    folder = Path(folder)
    splits = {
        split: read_manifest(folder / f"{split}.csv")
        for split in ("train", "valid", "test")
    }
    check_splits(splits)
    trials = {
        split: read_trials(
            folder / f"{split}_trials.txt", {row.path for row in splits[split]}
        )
        for split in ("valid", "test")
    }
    return splits, trials


def checksums(
    folder: str | os.PathLike, names: Iterable[str] = SEARCHED
) -> dict[str, str]:
    """Short checksums of manifests and trial lists, by default of those that a search
    is made on; the same wherever the recordings lie.

    Arguments
    ---------
    folder : str or os.PathLike
        The manifest folder.
    names : iterable of str
        Files in it.

    Returns
    -------
    dict
        By file.
    """
    return {
        name: hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest()[:12]
        for name in names
    }


def note_corpus(save_folder: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Notes in a run's `save_folder` what it trains and tests on."""
    with replacing(Path(save_folder) / NOTED) as file:
        json.dump(checksums(folder, TRAINED), file, indent=2)


def check_same_corpus(
    save_folder: str | os.PathLike, folder: str | os.PathLike
) -> None:
    """Checks that a run goes on with the recordings and trials that it began with: the
    speakers of a test may be among those it was trained on otherwise.

    Raises
    ------
    InputError
        They have changed.
    """
    path = Path(save_folder) / NOTED
    if not path.is_file():  # begun before this was noted
        return
    noted = json.loads(path.read_text(encoding="utf-8"))
    for name, checksum in checksums(folder, TRAINED).items():
        if noted.get(name) != checksum:
            raise InputError(
                f"{Path(save_folder).parent}: was begun with another {name}; the "
                "recordings, the trials or their settings have changed, so choose "
                "another --output_folder"
            )
