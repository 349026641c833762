"""From a HyperPyYAML file and overrides of its keys to hyperparameters.

Every mistake of a person here is an `InputError` of one line.
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

# Kinds of values in a YAML file, and what may take their place; a bool is an int too.
KINDS = (
    (bool, bool, "True or False"),
    (int, int, "an integer"),
    (float, (int, float), "a number"),
    (list, list, "a list, as in [1.0,0.9]"),
)
MAY_BE_NULL = ("train_time_limit_minutes",)  # also where a recipe has a number

# The least that a number may be, and whether it may be just that.
LEAST = {
    "number_of_epochs": (0, False),
    "epochs_per_pass": (0, False),
    "train_time_limit_minutes": (0, False),
    "batch_size": (0, False),
    "valid_batch_size": (0, False),
    "crop_seconds": (0.1, True),  # what an encoder needs for a frame of its own
    "lr": (0, True),
    "weight_decay": (0, True),
    "num_workers": (0, True),
    "seed": (0, True),
}


def check_overrides(hparams_file: str, overrides: Mapping, prefix: str = "--") -> None:
    """Checks that every override names a top-level key of the YAML file, and is a
    number where the file has one.

    Arguments
    ---------
    hparams_file : str
        The YAML file.
    overrides : mapping
        Values by key.
    prefix : str
        What stands before the key in a message: where the override comes from.

    Raises
    ------
    InputError
        The file can't be read or is no YAML mapping; a key does not exist or is an
        object, or its value is of another kind.
    """
    known = read_plain(hparams_file)
    check_keys(overrides, known, prefix, hparams_file)
    for key, value in overrides.items():
        if is_wired(known[key]):
            raise InputError(
                f"{prefix}{key}: is no value but what {hparams_file} is wired of; "
                "change it in a copy of that file"
            )
        if value is None and key in MAY_BE_NULL:
            continue
        for kind, allowed, words in KINDS:
            if isinstance(known[key], kind):
                is_bool = isinstance(value, bool)
                if not isinstance(value, allowed) or is_bool != (kind is bool):
                    raise InputError(f"{prefix}{key} {value}: has to be {words}")
                break


def check_ranges(values: Mapping) -> None:
    """Checks that numbers that have a least value, or null where it may be, are in
    their ranges.

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
        if value is not None and not fits:
            words = f"{least} or more" if may_be_least else f"a number above {least}"
            raise InputError(f"--{key} {value}: has to be {words}")


def check_keys(
    given: Iterable[str], known: Iterable[str], prefix: str, owner: str
) -> None:
    """Checks that all keys given are known ones.

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
            hint = f"the nearest are {', '.join(near)}" if near else "nor one like it"
            raise InputError(f"{prefix}{key}: {owner} has no such key; {hint}")


class Keys(dict):
    """The top-level keys of a YAML file. What it lacks is a person's to know.

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
    local_modules.errors.InputError: a.yaml: gives no seed; hparams/conformer.yaml does
    """

    def __init__(self, hparams_file: str, values: Mapping):
        super().__init__(values)
        self.hparams_file = hparams_file

    def __missing__(self, key):
        raise InputError(
            f"{self.hparams_file}: gives no {key}; hparams/conformer.yaml does"
        )


def plain_values(hparams_file: str, overrides: Mapping) -> Keys:
    """The top-level keys of a YAML file with overrides and references resolved, but
    no object made.

    Returns
    -------
    Keys
        Values by key; what is an object, or holds one, is left out.
    """
    values = Keys(hparams_file, {})
    for key, value in _resolved(hparams_file, overrides).items():
        is_plain = getattr(value, "tag", None) is None or value.tag.value is None
        # The parser's own kinds of number and list become Python's; objects within
        # a list or mapping can't.
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
    # Whatever the number of speakers is, no plain value depends on it.
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
