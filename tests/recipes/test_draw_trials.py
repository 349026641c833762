"""draw_trials.py as a person runs it."""

import subprocess
import sys
from itertools import combinations
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


def arguments(*within, across=None, manifest="valid.csv", output="list.txt"):
    command = [manifest, "--metadata", "known.tsv", "-o", output]
    command += ["--within", *within] if within else []
    return command + (["--across", across] if across else [])


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


@pytest.mark.parametrize("within", [[], ["sex"]])
def test_targets_across_a_column(here, capsys, within):
    """All that are possible, as they are few."""
    days = ("monday", "monday", "tuesday", " ", "friday")
    rows = [
        Utterance(f"{name}/{i}", 1.0, f"{name}/{i}.wav", 0, 16000, name)
        for name in SEX
        for i in range(len(days))
    ]
    write_manifest(here / "valid.csv", rows)
    speaker = {row.path: row.speaker for row in rows}
    day = dict(zip(speaker, days * len(SEX), strict=True))
    lines = [f"{path}\t{SEX[speaker[path]]}\t{day[path]}" for path in speaker]
    (here / "known.tsv").write_text("\n".join(["path\tsex\tday", *lines]))
    assert draw_trials.main(arguments(*within, across="day")) == 0
    trials = read_trials("list.txt")
    drawn = zip(trials.labels, trials.enrol, trials.test, strict=True)
    targets, others = set(), set()
    for label, *pair in drawn:
        (targets if label else others).add(frozenset(pair))
    assert len(others) == len(targets) == trials.labels.sum() == len(trials) / 2
    assert targets == {
        frozenset((a, b))
        for a, b in combinations(speaker, 2)
        if speaker[a] == speaker[b]
        and day[a] != day[b]
        and " " not in (day[a], day[b])
        and not (within and SEX[speaker[a]] == "?")  # kim has nobody to be taken for
    }
    for a, b in others:
        assert speaker[a] != speaker[b]
        assert not within or SEX[speaker[a]] == SEX[speaker[b]]
    output = capsys.readouterr().out
    assert "5 recordings are left out: a column is empty" in output
    assert f"{len(targets)} of them target" in output and "across day" in output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (arguments("age"), "known.tsv: has no column age"),
        (arguments(across="age"), "known.tsv: has no column age"),
        (arguments(), "--within or --across has to name a column"),
        (arguments(across="sex"), "one of them with two recordings of two sessions"),
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
