"""Recipes as they stand."""

from pathlib import Path

from local_modules.yaml_trees import as_lines, read_plain

HPARAMS = Path(__file__).parents[2] / "hparams"
SYSTEMS = sorted(
    str(path)
    for path in HPARAMS.glob("*.yaml")
    if "embedding_model:" in path.read_text(encoding="utf-8")
)


def tree(name):
    """A recipe's keys, no reference resolved and no object made."""
    return read_plain(str(HPARAMS / f"{name}.yaml"))


def lines(name):
    """What a recipe says of each key, with the classes of its objects: a tree of them
    as text has none at its root."""
    return as_lines(tree(name))
