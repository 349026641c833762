"""prepare.py as a person runs it, against what train_speaker.py makes of a corpus."""

import shutil
from pathlib import Path

import pytest

import prepare
import train_speaker
from tests.programs import Program

ROOT = Path(__file__).parents[1]
RECIPE = str(ROOT / "hparams" / "conformer.yaml")
SPEECH = str(ROOT / "hparams" / "conformer_speech.yaml")


def options(data, manifests):
    return [
        *(RECIPE, "--corpus", "folder", "--data_folder", str(data)),
        *("--manifest_folder", str(manifests)),
    ]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_makes_what_training_makes_and_tells_the_same(voices_folder, tmp_path):
    """In a process of its own each: what is logged depends on what logged before."""
    prepared, trained = tmp_path / "prepared", tmp_path / "trained"
    said = Program(prepare.main, options(voices_folder, prepared)).output()
    short = ["--debug", "--noprogressbar", "--output_folder", str(tmp_path / "run")]
    log = Program(train_speaker.main, options(voices_folder, trained) + short).output()
    assert files(prepared) == files(trained)
    *told, place = said.splitlines()
    assert place == f"manifests  {prepared}"
    assert told[0] == "train: leaves 0 speakers, with 0 utterances, to test"
    assert told[-3].startswith("train  6 speakers, 48 recordings, ")
    assert all("trials, " in line for line in told[-2:])
    assert set(told) <= set(log.splitlines())


def test_training_goes_on_with_it(voices_folder, tmp_path):
    manifests = tmp_path / "manifests"
    assert prepare.main(options(voices_folder, manifests)) == 0
    before = {path: path.stat().st_mtime_ns for path in manifests.iterdir()}
    assert prepare.main(options(voices_folder, manifests)) == 0
    short = ["--debug", "--noprogressbar", "--output_folder", str(tmp_path / "run")]
    command = [*options(voices_folder, manifests), *short, "--skip_prep", "True"]
    assert train_speaker.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in manifests.iterdir()} == before


def test_a_run_that_has_begun_keeps_its_manifests(voices_folder, tmp_path, capsys):
    """Its test speakers may be in the training of another split."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(voices_folder / "train", data)
    command = [RECIPE, "--corpus", "folder", "--data_folder", str(data)]
    command += ["--output_folder", str(run), "--valid_share", "0.3"]
    command += ["--test_share", "0.3"]
    small = ["--batch_size", "4", "--number_of_epochs", "1", "--device", "cpu"]
    assert train_speaker.main([*command, *small, "--noprogressbar"]) == 0
    before = files(run / "manifests")
    capsys.readouterr()
    assert prepare.main([*command, *small[:4], "--corpus_seed", "7"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run}: holds a run with corpus_seed 1986, not 7" in line
    elsewhere = tmp_path / "elsewhere"
    other = ["--corpus_seed", "7", "--manifest_folder", str(elsewhere)]
    assert prepare.main([*command, *small[:4], *other]) == 0
    assert files(elsewhere)["test.csv"] != before["test.csv"]
    shutil.copytree(data / "train0", data / "new")
    assert prepare.main([*command, *small[:4]]) == 0
    assert "recordings added since are ignored" in capsys.readouterr().out
    assert files(run / "manifests") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: param_file"),
        ([SPEECH], "--data_folder: say where the corpus 'folder' is"),
        ([RECIPE, "--device", "cpu"], "--device: is for train_speaker.py; leave it"),
        ([RECIPE, "--valid_shares", "0.2"], "the nearest are valid_share"),
        ([RECIPE, "--corpus", "folder", "--data_folder", "nothing"], "nothing"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, words, tmp_path, capsys):
    place = ["--manifest_folder", str(tmp_path / "made")] if arguments else []
    assert prepare.main(arguments + place) == 2
    error = capsys.readouterr().err
    assert error.startswith("prepare.py: ") and words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_help_says_what_it_is_for(capsys):
    assert prepare.main(["--help"]) == 0
    assert "python prepare.py hparams/conformer_speech.yaml" in capsys.readouterr().out
