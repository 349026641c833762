"""What the pages say can be typed: commands have the options they use, an example of a
part of one's own trains."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import calibrate
import evaluate
import export
import local_modules
import speaker
import train_speaker
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


def test_the_encoder_on_the_page_of_parts(voices_folder, tmp_path, monkeypatch):
    """It trains in its recipe, and the model loads where only SpeechBrain is."""
    page = (ROOT / "docs/parts.md").read_text(encoding="utf-8")
    (module,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (lines,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    (tmp_path / "gru.py").write_text(module)
    monkeypatch.setattr(
        local_modules, "__path__", [*local_modules.__path__, str(tmp_path)]
    )
    text = (ROOT / "hparams/conformer.yaml").read_text()
    own = re.sub(r"    encoder: .*?(?=    pooling:)", lines, text, flags=re.S)
    recipe, run = tmp_path / "gru.yaml", tmp_path / "run"
    recipe.write_text(own)
    values = f"--corpus folder --data_folder {voices_folder} --output_folder {run}"
    more = "--number_of_epochs 2 --batch_size 8 --device cpu --noprogressbar"
    assert train_speaker.main([str(recipe), *values.split(), *more.split()]) == 0
    waves = sorted((voices_folder / "test").glob("*/*.wav"))[:2]
    program = f"""
from speechbrain.inference.interfaces import foreign_class
model = foreign_class(
    {str(run / "model")!r}, pymodule_file="custom.py", classname="SpeakerVerifier"
)
print(float(model.verify_files({str(waves[0])!r}, {str(waves[1])!r})[0]))
"""
    alone = {key: os.environ[key] for key in os.environ.keys() - {"PYTHONPATH"}}
    command = [sys.executable, "-c", program]
    output = subprocess.check_output(command, cwd=tmp_path, env=alone, text=True)
    assert -1 <= float(output.splitlines()[-1]) <= 1
