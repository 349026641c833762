"""What the pages say can be typed: their commands have the options that they use."""

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
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
]
LINE = re.compile(
    r"^(?:    (?:\w+=\S+ )?(?:python|torchrun)|srun) .*?\b(\w+\.py)\b(.*)$", re.M
)


def given(program):
    """The arguments of each command of a program, with the page they are from."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, rest in LINE.findall(text):
            arguments = shlex.split(rest.replace("…", ""), comments=True)
            if name == program and arguments:
                at = page.relative_to(ROOT).parent.name or page.name
                found.append(pytest.param(arguments, id=f"{at} {page.stem}"))
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


@pytest.mark.parametrize("arguments", given("evaluate.py"))
def test_evaluation(arguments):
    assert evaluate.parse(arguments).trials


@pytest.mark.parametrize("arguments", given("make_shards.py"))
def test_shards(arguments):
    options = make_shards.parse(arguments)
    assert options.manifests or options.verify


def anchors(page):
    """What a heading of a page is linked by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
