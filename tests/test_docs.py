"""What the pages say can be typed: their commands have the options that they use."""

import re
import shlex
from pathlib import Path

import pytest

import calibrate
import evaluate
import export
import speaker
import tune
from benchmarks import accuracy, data, inference, throughput, tuning
from local_modules.command_line import parse_command_line
from local_modules.config import check_overrides
from local_modules.tuning.search import read_search
from recipes import make_shards

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
    ROOT / "benchmarks" / "README.md",
]
# A line of its own, or between backticks.
COMMAND = re.compile(
    r"^(?:    (?:\w+=\S+ )?(?:python|torchrun)|srun) .*?\b(\w+)\.py\b(.*)$"
    r"|`(?:\w+=\S+ )?python [^`]*?\b(\w+)\.py\b([^`]*)`",
    re.M,
)
PARSERS = {
    "accuracy": accuracy.parse,
    "calibrate": calibrate.parse,
    "data": data.parse,
    "evaluate": evaluate.parse,
    "export": export.parse,
    "inference": inference.parse,
    "make_shards": make_shards.parse,
    "speaker": speaker.parse,
    "throughput": throughput.parse,
    "tuning": tuning.parse,
}


def given(programs):
    """The arguments of each command of some programs, with the page they are from."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for match in COMMAND.finditer(text):
            program, rest = match[1] or match[3], match[2] or match[4] or ""
            arguments = shlex.split(rest.replace("…", ""), comments=True)
            if program in programs and arguments:
                name = f"{page.relative_to(ROOT)} {program}"
                found.append(pytest.param(program, arguments, id=name))
    assert {param.values[0] for param in found} == set(programs)
    return found


def check_training(hparams_file, *arguments):
    hparams_file, _, overrides = parse_command_line(
        [str(ROOT / hparams_file), *arguments]
    )
    check_overrides(hparams_file, overrides)
    return overrides


@pytest.mark.parametrize(("program", "arguments"), given(["train_speaker", "prepare"]))
def test_training(program, arguments):
    if "best.yaml" in arguments[0]:  # what a study has written
        arguments = ["hparams/conformer.yaml", *arguments[1:]]
    check_training(*arguments)


@pytest.mark.parametrize(("program", "arguments"), given(["tune"]))
def test_tuning(program, arguments):
    options, rest = tune.parse(arguments)
    overrides = check_training(options.recipe, *rest)
    assert read_search(ROOT / options.search, str(ROOT / options.recipe), overrides)


@pytest.mark.parametrize(("program", "arguments"), given(PARSERS))
def test_the_others(program, arguments, tmp_path, monkeypatch):
    """A mistake is an exit or an InputError."""
    monkeypatch.chdir(tmp_path)
    if program == "export":  # looks for the model at once
        Path(arguments[0]).mkdir(parents=True)
    options = PARSERS[program](arguments)
    if hasattr(options, "rest"):
        check_training("hparams/conformer.yaml", *options.rest)


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
