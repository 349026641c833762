"""The search file: which keys of a recipe are searched, in which ranges, how, and for
which objectives."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from hyperpyyaml import load_hyperpyyaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import create_trial

from local_modules import config
from local_modules.errors import InputError, one_line
from local_modules.tuning.objectives import OBJECTIVES
from local_modules.yaml_trees import read_plain

TYPES = {
    "float": (FloatDistribution, {"low", "high"}, {"step", "log"}),
    "int": (IntDistribution, {"low", "high"}, {"step", "log"}),
    "categorical": (CategoricalDistribution, {"choices"}, set()),
}
PLAIN = {"n_trials", "objective", "proxy", "space"}
KEYS = PLAIN | {"sampler_seed", "sampler", "pruner"}


@dataclass(frozen=True)
class Search:
    """The content of a search file, checked against the recipe.

    Arguments
    ---------
    n_trials : int
        Number of trials of a complete study.
    objectives : tuple of str
        Names of `OBJECTIVES`, all to be minimised.
    proxy : dict
        Overrides that turn a full training into a trial.
    space : dict
        Optuna distribution by top-level key of the recipe.
    defaults : dict
        The recipe's own value of each key of `space`.
    """

    n_trials: int
    objectives: tuple[str, ...]
    proxy: dict
    space: dict[str, BaseDistribution]
    defaults: dict


def search_file_of(hparams_file: str) -> str:
    """The search file of a recipe: `search/` beside it, with the same name.

    Raises
    ------
    InputError
        The recipe exists, but no such file.

    Example
    -------
    >>> search_file_of("hparams/conformer.yaml")
    'hparams/search/conformer.yaml'
    """
    recipe = Path(hparams_file)
    search_file = recipe.parent / "search" / recipe.name
    if recipe.is_file() and not search_file.is_file():
        raise InputError(
            f"{hparams_file}: there is no {search_file}; --search FILE names a search "
            "file"
        )
    return str(search_file)


def read_search(
    search_file: str | os.PathLike,
    hparams_file: str,
    overrides: Mapping,
    objectives: Sequence[str] | None = None,
) -> Search:
    """Reads a search file and checks it against the recipe.

    Arguments
    ---------
    search_file : str or os.PathLike
        HyperPyYAML like `hparams/search/conformer.yaml`.
    hparams_file : str
        The recipe.
    overrides : mapping
        Keys of the recipe set for every training; they are not searched, and the
        proxy's take precedence.
    objectives : sequence of str
        In place of the file's `objective`.

    Returns
    -------
    Search

    Raises
    ------
    InputError
        The file can't be read, names a key that the recipe doesn't have, an unknown
        type or a wrong range, or a range without the recipe's own value.
    """
    tree = _load(search_file)
    objectives = objectives or tree["objective"]
    if not isinstance(objectives, (list, tuple)):
        objectives = (objectives,)
    for name in objectives or [None]:
        if not isinstance(name, str) or name not in OBJECTIVES:
            raise InputError(f"objective {name!r}: choose from {', '.join(OBJECTIVES)}")
        if objectives.count(name) > 1:
            raise InputError(f"objective {name}: is repeated; name it once")
    objectives = tuple(objectives)
    n_trials = tree["n_trials"]
    if not isinstance(n_trials, int) or n_trials < 1:
        raise InputError(
            f"{search_file}: n_trials: {n_trials!r} is not a whole number above 0"
        )
    proxy = tree["proxy"]
    config.check_overrides(hparams_file, proxy, f"{search_file}: proxy: ")
    known, place = read_plain(hparams_file), f"{search_file}: space: "
    config.check_keys(tree["space"], known, place, hparams_file)
    values = config.plain_values(hparams_file, {**overrides, **proxy})
    space = {}
    for key, entry in tree["space"].items():
        place = f"{search_file}: space: {key}"
        if key not in values:
            raise InputError(f"{place}: is an object in {hparams_file}, not a value")
        if key in proxy:
            raise InputError(f"{place}: is in proxy too; take it out of one of them")
        distribution = _distribution(place, entry)
        for value in _ends(distribution):
            config.check_overrides(hparams_file, {key: value}, f"{place}: ")
            try:
                config.check_ranges({key: value})
            except InputError as error:
                told = str(error).removeprefix("--")
                raise InputError(f"{place}: {told}") from None
        if key in overrides:
            continue
        if not _contains(distribution, values[key]):
            raise InputError(
                f"{place}: {values[key]!r}, the value in {hparams_file} and in the "
                f"first trial, is not in {distribution_text(distribution)}"
            )
        space[key] = distribution
    if not space:
        raise InputError(f"{search_file}: space: nothing is left to search")
    defaults = {key: values[key] for key in space}
    return Search(n_trials, objectives, proxy, space, defaults)


def make_sampler_and_pruner(
    search_file: str | os.PathLike, seed: int
) -> tuple[optuna.samplers.BaseSampler, optuna.pruners.BasePruner]:
    """Makes the sampler and the pruner of a search file.

    Arguments
    ---------
    search_file : str or os.PathLike
        As for `read_search`.
    seed : int
        Becomes `sampler_seed`.

    Returns
    -------
    sampler : optuna.samplers.BaseSampler
    pruner : optuna.pruners.BasePruner

    Raises
    ------
    InputError
        One of them can't be made from the values given.
    """
    try:
        with open(search_file, encoding="utf-8") as file:
            tree = load_hyperpyyaml(file, {"sampler_seed": seed})
    except Exception as error:
        raise InputError(f"{search_file}: {one_line(error)}") from error
    for key, base in (
        ("sampler", optuna.samplers.BaseSampler),
        ("pruner", optuna.pruners.BasePruner),
    ):
        if not isinstance(tree[key], base):
            raise InputError(f"{search_file}: {key}: is not one of optuna.{key}s")
    return tree["sampler"], tree["pruner"]


def suggest(trial: optuna.Trial, space: Mapping[str, BaseDistribution]) -> dict:
    """A value for each key of the space, from the sampler or as the trial was queued
    with."""
    values = {}
    for key, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            values[key] = trial.suggest_categorical(key, distribution.choices)
            continue
        is_int = isinstance(distribution, IntDistribution)
        draw = trial.suggest_int if is_int else trial.suggest_float
        values[key] = draw(
            key,
            distribution.low,
            distribution.high,
            step=distribution.step,
            log=distribution.log,
        )
    return values


def _load(search_file) -> Mapping:
    # Without making objects: numbers can be checked whatever the sampler is.
    tree = read_plain(str(search_file))
    try:
        # The parser's own types of number and list become Python's.
        plain = {k: json.loads(json.dumps(v)) for k, v in tree.items() if k in PLAIN}
    except TypeError as error:  # an object, a date
        raise InputError(f"{search_file}: {one_line(error)}") from None
    config.check_keys(tree, KEYS, f"{search_file}: ", "a search file")
    for key in sorted(KEYS - set(tree)):
        raise InputError(f"{search_file}: {key}: is missing")
    for key in ("proxy", "space"):
        if not isinstance(plain[key], Mapping):
            raise InputError(
                f"{search_file}: {key}: is not a mapping of keys to values"
            )
    return plain


def _distribution(place: str, entry) -> BaseDistribution:
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str) or kind not in TYPES:
        raise InputError(f"{place}: type {kind!r}: choose from {', '.join(TYPES)}")
    make, needed, optional = TYPES[kind]
    given = {name: value for name, value in entry.items() if name != "type"}
    config.check_keys(given, needed | optional, f"{place}: ", f"type {kind}")
    for name in sorted(needed - set(given)):
        raise InputError(f"{place}: {name}: is missing")
    for name in needed & {"low", "high"} | set(given) & {"step"}:
        number = int if kind == "int" else (int, float)
        value = given[name]
        if not isinstance(value, number) or isinstance(value, bool):
            raise InputError(f"{place}: {name}: {value!r} is not of type {kind}")
        if not math.isfinite(value):
            raise InputError(f"{place}: {name}: {value!r} is not finite")
    if not isinstance(given.get("log", False), bool):
        raise InputError(f"{place}: log: {given['log']!r} is neither True nor False")
    if kind == "categorical" and not isinstance(given["choices"], list):
        raise InputError(f"{place}: choices: {given['choices']!r} is not a list")
    for choice in given.get("choices", ()):
        if not isinstance(choice, (str, int, float, type(None))):
            raise InputError(f"{place}: choices: {choice!r} is not a plain value")
    if "choices" not in given and given["low"] >= given["high"]:
        raise InputError(
            f"{place}: low {given['low']} is not below high {given['high']}"
        )
    try:
        return make(**given)
    except (ValueError, TypeError) as error:
        raise InputError(f"{place}: {one_line(error)}") from None


def _ends(distribution: BaseDistribution) -> tuple:
    """All choices, or the lowest and the highest value."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return distribution.low, distribution.high


def _contains(distribution: BaseDistribution, value) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if isinstance(distribution, IntDistribution) and not isinstance(value, int):
        return False
    try:
        create_trial(value=0.0, params={"": value}, distributions={"": distribution})
    except ValueError:
        return False
    return True


def distribution_text(distribution: BaseDistribution) -> str:
    """The range of a parameter, in a few words."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    has_steps = distribution.step not in (None, 1)
    step = f" in steps of {distribution.step}" if has_steps else ""
    log = " (log)" if distribution.log else ""
    return f"{distribution.low} to {distribution.high}{step}{log}"
