"""Recipes as they stand."""

from pathlib import Path

from local_modules.config import as_lines, load_plain

HPARAMS = Path(__file__).parents[2] / "hparams"


def tree(name):
    """A recipe's keys, no reference resolved and no object made."""
    path = HPARAMS / f"{name}.yaml"
    return load_plain(path.name, path.read_text(encoding="utf-8"))


def lines(name):
    """What a recipe says of each key, with the classes of its objects: a tree of them
    as text has none at its root."""
    return as_lines(tree(name))
