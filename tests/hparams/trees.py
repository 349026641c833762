"""Recipes as they stand."""

from pathlib import Path

from local_modules.config import load_plain

HPARAMS = Path(__file__).parents[2] / "hparams"


def tree(name):
    """A recipe's keys, no reference resolved and no object made."""
    path = HPARAMS / f"{name}.yaml"
    return load_plain(path.name, path.read_text(encoding="utf-8"))
