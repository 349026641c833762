"""SpeechBrain's --hpopt under drivers that aren't ours: real ones, small studies."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from local_modules.errors import InputError
from local_modules.tuning.hpopt import OPTUNA_VARIABLES, Driven
from tests.programs import Program, train

ROOT = Path(__file__).parents[3]
RECIPE = str(ROOT / "hparams" / "conformer.yaml")
SMALL = {
    "corpus": "folder",
    "d_model": 16,
    "n_blocks": 1,
    "n_heads": 2,
    "d_ffn": 16,
    "emb_dim": 16,
    "batch_size": 8,
    "crop_seconds": 0.8,
    "number_of_epochs": 1,
    "device": "cpu",
}


def command(voices_folder, hpopt_file, mode):
    pairs = {**SMALL, "data_folder": voices_folder, "hpopt": hpopt_file}
    pairs["hpopt_mode"] = mode
    words = [text for key, value in pairs.items() for text in (f"--{key}", f"{value}")]
    return [sys.executable, str(ROOT / "train_speaker.py"), RECIPE, *words]


@pytest.fixture
def hpopt_file(tmp_path):
    path = tmp_path / "hpopt.yaml"
    path.write_text(
        "trial_id: !PLACEHOLDER\n"
        f"output_folder: !ref {tmp_path}/runs/<trial_id>\n"
        "number_of_epochs: 9\n"
    )
    return path


def test_the_files_settings_are_overridden_by_the_command_line(hpopt_file, tmp_path):
    driven = Driven({"hpopt": str(hpopt_file), "lr": 0.1, "number_of_epochs": 1})
    folder = driven.overrides.pop("output_folder")
    assert folder.startswith(f"{tmp_path}/runs/")
    assert driven.overrides == {"lr": 0.1, "number_of_epochs": 1}
    assert Driven({"hpopt": True, "lr": 0.1}).overrides == {"lr": 0.1}


def driven_folder(rank, count, folder, hpopt_file):
    return Driven({"hpopt": str(hpopt_file)}).overrides["output_folder"]


def test_ranks_share_the_folder_of_a_generic_driver(hpopt_file, on_ranks):
    (first, second), _ = on_ranks(driven_folder, 2, hpopt_file)
    assert first == second


def test_a_study_of_somebody_elses(voices_folder, hpopt_file, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="theirs", storage=storage)
    for lr in (0.001, 0.002):
        study.enqueue_trial({"lr": lr})
        trial = study.ask()
        names = (storage, "theirs", str(trial.number))
        environment = dict(zip(OPTUNA_VARIABLES, names, strict=True))
        lr = trial.suggest_float("lr", 0.0001, 0.01)
        _, _, *arguments = command(voices_folder, hpopt_file, "optuna")
        arguments += ["--lr", str(lr)]
        program = Program(train, arguments, environment=environment)
        output = program.output()
        assert program.status == 0, output
    assert [trial.state.name for trial in study.trials] == 2 * ["COMPLETE"]
    for trial in study.trials:
        log = tmp_path / "runs" / f"theirs-{trial.number}" / "train_log.txt"
        eer = float(log.read_text().split("valid EER ")[1].split(" %")[0]) / 100
        assert trial.value == pytest.approx(eer, abs=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("orion") is None, reason="Orion is not installed"
)
def test_orion_hunts(voices_folder, hpopt_file, tmp_path):
    config = (ROOT / "hparams" / "orion.yaml").read_text()
    config = config.replace("results/orion.pkl", f"{tmp_path}/orion.pkl")
    (tmp_path / "orion.yaml").write_text(config)
    subprocess.run(
        [str(Path(sys.executable).with_name("orion")), "hunt", "-n", "small"]
        + ["-c", str(tmp_path / "orion.yaml"), "--max-trials", "2"]
        + command(voices_folder, hpopt_file, "orion")
        + ["--angular_margin~uniform(0.1, 0.9)"],
        cwd=tmp_path,
        check=True,
    )
    with open(tmp_path / "orion.pkl", "rb") as file:
        trials = pickle.load(file)._db["trials"]._documents
    trials = [document._data for document in trials]
    done = [trial for trial in trials if trial["status"] == "completed"]
    assert len(done) == 2
    for trial in done:
        (result,) = trial["results"]
        assert result["type"] == "objective" and 0 <= result["value"] <= 0.5
        (parameter,) = trial["params"]
        assert parameter["name"] == "/angular_margin"
        assert 0.1 <= parameter["value"] <= 0.9
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_without_a_driver_the_result_is_printed(voices_folder, hpopt_file):
    _, _, *arguments = command(voices_folder, hpopt_file, "generic")
    program = Program(train, arguments)
    output = program.output()
    assert program.status == 0, output
    result = json.loads(output.splitlines()[-1])
    assert result["objective"] == result["eer"]


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("theirs", "0", "OPTUNA_TRIAL_NUMBER 0: is COMPLETE in study theirs"),
        ("theirs", "1", "OPTUNA_TRIAL_NUMBER 1: is WAITING in study theirs"),
        ("theirs", "-1", "OPTUNA_TRIAL_NUMBER: name no trial: numbers count from 0"),
        ("two", "0", "OPTUNA_STUDY_NAME two: has 2 objectives"),
        ("theirs", "7", "OPTUNA_TRIAL_NUMBER: name no trial"),
        ("theirs", "x", "OPTUNA_TRIAL_NUMBER: name no trial"),
        ("ours", "0", "OPTUNA_TRIAL_NUMBER: name no trial"),
    ],
)
def test_a_wrong_trial_is_known_before_the_training(
    name, number, words, tmp_path, monkeypatch
):
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="theirs", storage=storage)
    study.tell(study.ask(), 0.1)
    study.enqueue_trial({"lr": 0.1})
    two = optuna.create_study(
        study_name="two", storage=storage, directions=2 * ["minimize"]
    )
    two.ask()
    names = (storage, name, number)
    for variable, value in zip(OPTUNA_VARIABLES, names, strict=True):
        monkeypatch.setenv(variable, value)
    with pytest.raises(InputError) as caught:
        Driven({"hpopt": True, "hpopt_mode": "optuna"})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"hpopt": "none.yaml"}, ["none.yaml", "No such file"]),
        ({"hpopt": True, "hpopt_mode": "optnua"}, ["optnua", "optuna", "orion"]),
        ({"hpopt": False}, ["--hpopt False", "True or a file"]),
        ({"hpopt": True, "hpopt_mode": "optuna"}, list(OPTUNA_VARIABLES)),
        ({"hpopt": True, "hpopt_mode": "orion"}, ["pip install orion", "orion hunt"]),
    ],
)
def test_a_mistake_is_one_line(overrides, words, monkeypatch):
    for name in OPTUNA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError) as caught:
        Driven(overrides)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
