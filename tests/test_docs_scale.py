"""What docs/scale.md says can be typed: its commands have the options they use."""

import re
import shlex
from pathlib import Path

import pytest

import evaluate
import tune
from local_modules.config import check_overrides, parse_command_line
from local_modules.tuning.search import read_search
from recipes import make_shards

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").replace("\\\n", " ")
PAGE = PAGE.replace("recipes/make", "make")
COMMANDS = re.findall(r"^(?:    |srun ).*?(\w+\.py .*)$", PAGE, re.M)


def given(program):
    """The arguments of each command of a program."""
    found = [shlex.split(line)[1:] for line in COMMANDS if line.startswith(program)]
    assert found, program
    return found


def check_training(hparams_file, *arguments):
    hparams_file, _, overrides = parse_command_line(
        [str(ROOT / hparams_file), *arguments]
    )
    check_overrides(hparams_file, overrides)
    return overrides


@pytest.mark.parametrize("arguments", given("train_speaker.py"))
def test_training(arguments):
    check_training(*arguments)


@pytest.mark.parametrize("arguments", given("tune.py"))
def test_tuning(arguments):
    options, rest = tune.parse(arguments)
    overrides = check_training(options.recipe, *rest)
    assert read_search(ROOT / options.search, str(ROOT / options.recipe), overrides)


def test_the_others():
    (arguments,) = given("evaluate.py")
    assert evaluate.parse(arguments).trials
    (arguments,) = given("make_shards.py")
    assert make_shards.parse(arguments).manifests
