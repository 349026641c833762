"""draw_trials.py as a person runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from local_modules.manifest import Utterance, write_manifest
from local_modules.trials import read_trials
from recipes import draw_trials

ROOT = Path(__file__).parents[2]
SEX = {"ann": "f", "eve": "f", "bob": "m", "tom": "m", "kim": "?"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A manifest of two recordings of each speaker, and what is known of them."""
    rows = [
        Utterance(f"{name}/{i}", 1.0, f"{name}/{i}.wav", 0, 16000, name)
        for name in SEX
        for i in (1, 2)
    ]
    write_manifest(tmp_path / "valid.csv", rows)
    lines = [f"{row.path}\t{SEX[row.speaker]}\ten" for row in rows]
    (tmp_path / "known.tsv").write_text("\n".join(["path\tsex\ttongue", *lines]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(*within, manifest="valid.csv", output="list.txt"):
    return [manifest, "--metadata", "known.tsv", "--within", *within, "-o", output]


def test_a_list_within_a_column(here):
    """In a process of its own: beside it lies a folder called csv."""
    output = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "draw_trials.py"), *arguments("sex")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "8 trials, 4 of them target, within 2 groups" in output
    assert output.splitlines()[-1] == "list  list.txt"
    trials = read_trials("list.txt")
    for label, *paths in zip(trials.labels, trials.enrol, trials.test, strict=True):
        names = [path.split("/")[0] for path in paths]
        assert SEX[names[0]] == SEX[names[1]] != "?"
        assert label == (names[0] == names[1])


def test_columns_together_are_one_kind(here):
    assert draw_trials.main(arguments("sex", "tongue")) == 0
    both = (here / "list.txt").read_text()
    assert draw_trials.main(arguments("sex")) == 0
    assert (here / "list.txt").read_text() == both
    assert draw_trials.main(arguments("tongue")) == 0
    assert len(read_trials("list.txt")) == 10  # kim has others of her tongue


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (arguments("age"), "--within age: known.tsv has no such"),
        (arguments("sex", manifest="none.csv"), "none.csv"),
        (
            arguments("sex", output="no/list.txt"),
            "no/list.txt: can't be written",
        ),
        (["valid.csv"], "--metadata"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(here, capsys, command, words):
    assert draw_trials.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("draw_trials.py: ") and error.count("\n") == 1
    assert words in error


def test_an_empty_column_is_no_kind(here, capsys):
    known = (here / "known.tsv").read_text()
    for name in ("bob", "tom", "kim"):
        known = known.replace(f"\t{SEX[name]}\t", "\t \t")
    (here / "known.tsv").write_text(known)
    assert draw_trials.main(arguments("sex")) == 0
    assert "6 recordings are left out: a column is empty" in capsys.readouterr().out
    trials = read_trials("list.txt")
    assert {path.split("/")[0] for path in trials.enrol + trials.test} == {"ann", "eve"}


def test_recordings_that_nothing_is_known_of(here, capsys):
    lines = (here / "known.tsv").read_text().splitlines()
    (here / "known.tsv").write_text("\n".join(lines[:-1]))
    assert draw_trials.main(arguments("sex")) == 2
    assert "known.tsv: has no row for kim/2.wav" in capsys.readouterr().err
