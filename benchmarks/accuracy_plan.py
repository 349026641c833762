"""What is compared: the rows of a table, and their common settings."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from benchmarks.accuracy_table import ALL
from benchmarks.measuring import SETTINGS, once, prepare_noted
from local_modules import config
from local_modules.command_line import parse_command_line
from local_modules.corpus import read_corpus
from local_modules.errors import InputError, one_line
from local_modules.evaluation.results import groups_by_metadata, read_metadata
from local_modules.trials import TrialList
from local_modules.yaml_trees import as_lines, read_plain

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("results/benchmarks/accuracy")
MANIFESTS = "manifests"  # in the folder of a table
MANY_EPOCHS = 100_000  # the time limit ends a training


@dataclass(frozen=True)
class Row:
    """A system of the table.

    Arguments
    ---------
    name : str
        Of its folder.
    title : str
        Its title in the table.
    recipe : str
        Its HyperPyYAML file, relative to the repository's root.
    values : dict
        Its own values in this comparison, by key of the recipe.
    program : str
        What trains it; must write what train_speaker.py writes.
    """

    name: str
    title: str
    recipe: str
    values: dict = field(default_factory=dict)
    program: str = "train_speaker.py"

    @property
    def recipe_file(self) -> str:
        """The absolute path of the recipe."""
        return str(ROOT / self.recipe)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings of its recipe, by key."""
        return as_lines(read_plain(self.recipe_file))


def read_rows(path: str) -> dict[str, Row]:
    """The rows of a table by their names.

    Raises
    ------
    InputError
        The file can't be read, or a row is not as in benchmarks/accuracy.yaml.
    """
    try:
        tree = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
        rows = {name: Row(name, **fields) for name, fields in tree.items()}
        for row in rows.values():
            config.check_overrides(row.recipe_file, row.values, f"{path}: {row.name}: ")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (YAMLError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: rows must be `name: {{title: ..., recipe: FILE}}`: "
            f"{one_line(error)}"
        ) from None
    return rows


@dataclass(frozen=True)
class Plan:
    """The settings that all rows have in common.

    Arguments
    ---------
    folder : Path
        Where all output goes.
    values : dict
        Keys and values for those recipes that have them.
    flags : list of str
        SpeechBrain's run options.
    threads : int
        Per training.
    data_folder : str
        The folder that the trials' paths are relative to.
    trials : TrialList
        Of `test`.
    parts : dict
        Indices of trials, by the name of the part, int64 arrays.
    n_train : int
        Training utterances.
    """

    folder: Path
    values: dict
    flags: list[str]
    threads: int
    data_folder: str
    trials: TrialList
    parts: dict[str, np.ndarray]
    n_train: int


def make_plan(options: argparse.Namespace, rows: Mapping[str, Row]) -> Plan:
    """Checks the options, and prepares the corpus."""
    first = next(iter(rows.values()))
    _, run_opts, given = parse_command_line([first.recipe_file, *options.rest])
    known = {row.name: row.settings for row in rows.values()}
    config.check_keys(given, set().union(*known.values()), "--", options.table)
    corpus = config.plain_values(
        first.recipe_file, {k: given[k] for k in given.keys() & known[first.name]}
    )
    name = options.name or f"{corpus['corpus']}_{options.minutes:g}min"
    folder = FOLDER / name
    manifests = folder / MANIFESTS
    own = {
        "train_time_limit_minutes": float(options.minutes),
        "number_of_epochs": MANY_EPOCHS,
        "manifest_folder": str(manifests),
        "skip_prep": True,
    }
    for key in own.keys() | {"seed", "output_folder", "save_folder"}:
        if key in given:
            raise InputError(f"--{key}: is set by the benchmark; leave it out")
    for row in rows.values():
        told = {key: v for key, v in {**given, **own}.items() if key in row.settings}
        config.check_overrides(row.recipe_file, told)
    shared = {key: corpus[key] for key in ("corpus", "data_folder")}
    values, flags = {**given, **own, **shared}, given_flags(run_opts)
    asked = {key: getattr(options, key) for key in ("threads", "metadata", "by")}
    settings = {**values, **asked, "flags": flags}
    noted = prepare_noted(
        folder, settings, {**corpus, "manifest_folder": str(manifests)}
    )
    splits, trials = read_corpus(manifests)
    parts = {ALL: np.arange(len(trials["test"]))}
    if options.metadata:
        parts |= parts_by(options, trials["test"])
    once(folder / SETTINGS, lambda: noted)
    return Plan(
        folder,
        values,
        flags,
        options.threads,
        corpus["data_folder"],
        trials["test"],
        parts,
        len(splits["train"]),
    )


def parts_by(options: argparse.Namespace, trials: TrialList) -> dict[str, np.ndarray]:
    """The trials of each value of --by that has trials of both kinds."""
    metadata = read_metadata(options.metadata)
    columns = dict.fromkeys(key for row in metadata.values() for key in row)
    wanted = {
        path: {options.by: row[options.by]}
        for path, row in metadata.items()
        if options.by in row
    }
    groups = groups_by_metadata(wanted, [[e] for e in trials.enrol], trials.test)
    if options.by not in groups:
        raise InputError(
            f"--by {options.by}: {options.metadata} has no such column with several "
            f"values in the trials; its columns are {', '.join(columns)}"
        )
    return {
        name: rows
        for name, rows in groups[options.by].items()
        if 0 < trials.labels[rows].sum() < len(rows)
    }


def given_flags(run_opts) -> list[str]:
    """SpeechBrain's run options as they were given."""
    flags = []
    for name in sorted(run_opts.overridden_args):
        value = getattr(run_opts, name)
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(f"{one}" for one in values if one is not True)]
    return flags


def row_values(row: Row, seed: int, plan: Plan) -> dict:
    """Values for a training: those for all rows that its recipe has, and its own."""
    values = {**plan.values, "seed": seed}
    values = {key: value for key, value in values.items() if key in row.settings}
    folder = plan.folder / row.name / f"{seed}"
    return values | row.values | {"output_folder": str(folder)}
