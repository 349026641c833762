"""From a HyperPyYAML file and overrides of its keys to hyperparameters.

Every user error here is an `InputError` of one line.
"""

import contextlib
import difflib
import json
from collections.abc import Iterable, Mapping

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.error import YAMLError

from local_modules.errors import InputError, one_line
from local_modules.yaml_trees import (
    as_lines,
    is_wired,
    load_plain,
    read_plain,
)

# Kinds of values in a YAML file, and those that may replace them; a bool is an int too.
KINDS = (
    (bool, bool, "True or False"),
    (int, int, "an integer"),
    (float, (int, float), "a number"),
    (list, list, "a list, as in [1.0,0.9]"),
)
MAY_BE_NULL = ("train_time_limit_minutes",)  # even if a recipe has a number
WRITTEN = ("output_folder", "manifest_folder", "save_folder")  # may not

# Lower bound of a number, and whether it may equal the bound.
LEAST = {
    "number_of_epochs": (0, False),
    "epochs_per_pass": (0, False),
    "train_time_limit_minutes": (0, False),
    "batch_size": (0, False),
    "valid_batch_size": (0, False),
    "crop_seconds": (0.1, True),  # enough for one frame of an encoder's output
    "sample_rate": (1000, True),  # in Hz, not in kHz
    "augment_prob": (0, True),
    "lr": (0, True),
    "weight_decay": (0, True),
    "num_workers": (0, True),
    "seed": (0, True),
}
MOST = {"augment_prob": 1}  # upper bound of one of these


def check_overrides(hparams_file: str, overrides: Mapping, prefix: str = "--") -> None:
    """Checks that every override names a top-level key of the YAML file, and is of the
    same kind as the file's value.

    Arguments
    ---------
    hparams_file : str
        The YAML file.
    overrides : mapping
        Values by key.
    prefix : str
        Put before the key in a message, to show where the override comes from.

    Raises
    ------
    InputError
        The file can't be read or is not a YAML mapping; a key does not exist or is an
        object, or its value is of another kind.
    """
    known = read_plain(hparams_file)
    check_keys(overrides, known, prefix, hparams_file)
    for key, value in overrides.items():
        if is_wired(known[key]):
            raise InputError(
                f"{prefix}{key}: is not a plain value in {hparams_file}; change it in "
                "a copy of that file"
            )
        if value is None and key in MAY_BE_NULL:
            continue
        if value is None and key in WRITTEN:
            raise InputError(f"{prefix}{key} null: has to be a folder to write to")
        for kind, allowed, words in KINDS:
            if isinstance(known[key], kind):
                is_bool = isinstance(value, bool)
                if not isinstance(value, allowed) or is_bool != (kind is bool):
                    raise InputError(f"{prefix}{key} {value}: has to be {words}")
                break


def check_ranges(values: Mapping) -> None:
    """Checks that numbers with a range, unless they are null, are in it.

    Raises
    ------
    InputError
        One isn't.

    Example
    -------
    >>> check_ranges({"batch_size": 8, "train_time_limit_minutes": None})
    """
    for key, (least, may_be_least) in LEAST.items():
        value = values.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = is_number and (value >= least if may_be_least else value > least)
        fits = fits and value <= MOST.get(key, value)
        if value is not None and not fits:
            words = f"{least} or more" if may_be_least else f"a number above {least}"
            if key in MOST:
                words = f"from {least} to {MOST[key]}"
            raise InputError(f"--{key} {value}: has to be {words}")


def check_keys(
    given: Iterable[str], known: Iterable[str], prefix: str, owner: str
) -> None:
    """Checks that all keys given are known.

    Raises
    ------
    InputError
        One is not; the nearest are named.

    Example
    -------
    >>> check_keys(["lr"], ["lr", "seed"], "--", "a.yaml")
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            hint = f"the nearest are {', '.join(near)}" if near else "none is similar"
            raise InputError(f"{prefix}{key}: {owner} has no such key; {hint}")


class Keys(dict):
    """The top-level keys of a YAML file. A missing one is reported to the user.

    Arguments
    ---------
    hparams_file : str
        The file.
    values : mapping
        Values by key.

    Example
    -------
    >>> keys = Keys("a.yaml", {"lr": 0.1})
    >>> keys["lr"], keys.get("seed")
    (0.1, None)
    >>> keys["seed"]
    Traceback (most recent call last):
    ...
    local_modules.errors.InputError: a.yaml: has no key seed; see hparams/conformer.yaml
    """

    def __init__(self, hparams_file: str, values: Mapping):
        super().__init__(values)
        self.hparams_file = hparams_file

    def __missing__(self, key):
        raise InputError(
            f"{self.hparams_file}: has no key {key}; see hparams/conformer.yaml"
        )


def plain_values(hparams_file: str, overrides: Mapping) -> Keys:
    """The top-level keys of a YAML file with overrides and references resolved, but
    no objects made.

    Returns
    -------
    Keys
        Values by key; objects, and values that hold one, are left out.
    """
    values = Keys(hparams_file, {})
    for key, value in _resolved(hparams_file, overrides).items():
        is_plain = getattr(value, "tag", None) is None or value.tag.value is None
        # Turns the parser's numbers and lists into Python's; fails for objects in a
        # list or mapping.
        with contextlib.suppress(TypeError):
            if is_plain:
                values[key] = json.loads(json.dumps(value))
    return values


def texts(hparams_file: str, overrides: Mapping) -> dict[str, str]:
    """The top-level keys of a YAML file with overrides and references resolved.

    Returns
    -------
    dict
        What `as_lines` makes of them.
    """
    return as_lines(_resolved(hparams_file, overrides))


def _resolved(hparams_file: str, overrides: Mapping) -> Mapping:
    # No plain value depends on the number of speakers.
    text = resolved_text(hparams_file, {"n_speakers": 0, **overrides})
    return load_plain(hparams_file, text)


def resolved_text(hparams_file: str, overrides: Mapping) -> str:
    """The YAML file with overrides and references resolved, as text."""
    try:
        with open(hparams_file, encoding="utf-8") as file:
            return resolve_references(file, dict(overrides)).getvalue()
    except (YAMLError, ValueError, KeyError) as error:
        raise InputError(f"{hparams_file}: {one_line(error)}") from None


def load_hparams(hparams_file: str, overrides: Mapping) -> Keys:
    """Loads a YAML file and makes the objects in it.

    Raises
    ------
    InputError
        An object can't be made of the values given.
    """
    try:
        with open(hparams_file, encoding="utf-8") as file:
            return Keys(hparams_file, load_hyperpyyaml(file, dict(overrides)))
    except Exception as error:
        raise InputError(f"{hparams_file}: {one_line(error)}") from error
