"""The benchmark of tune.py, on a tiny corpus: that it measures, not what."""

import json
from pathlib import Path

import optuna
import pytest

from benchmarks import tuning
from local_modules.config import plain_values
from local_modules.errors import InputError, RunError
from local_modules.tuning.search import read_search
from tests.programs import benchmark

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "hparams" / "conformer.yaml")
SEARCH = """
n_trials: 2
objective: eer
proxy: {number_of_epochs: 1}
space: {lr: {type: float, low: 0.0001, high: 0.01, log: True}}
sampler_seed: !PLACEHOLDER
sampler: !new:optuna.samplers.RandomSampler {seed: !ref <sampler_seed>}
pruner: !new:optuna.pruners.MedianPruner
"""
TINY = {
    "corpus": "folder",
    "d_model": 16,
    "n_blocks": 1,
    "n_heads": 2,
    "d_ffn": 16,
    "emb_dim": 16,
    "batch_size": 8,
    "crop_seconds": 0.8,
}


def test_both_ways_are_measured(voices_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "search.yaml").write_text(SEARCH)
    values = {**TINY, "data_folder": voices_folder}
    options = ["--seeds", "1", "--recipe", RECIPE, "--share", "4", "--again", "1"]
    options += ["--search", "search.yaml", "--device", "cpu"]
    options += [text for key in values for text in (f"--{key}", f"{values[key]}")]
    benchmark("tuning", tmp_path, *options)
    folder = tmp_path / "results" / "benchmarks" / "tuning" / "default"
    hand = json.loads((folder / "by_hand_1" / "result.json").read_text())
    tuned = json.loads((folder / "by_tune_1.json").read_text())
    assert hand["n_trials"] == 2 and tuned["n_trials"] >= 1
    for result in (hand, tuned):
        assert result["best_eer"] == pytest.approx(result["curve"][-1][1])
        assert 0 < result["curve"][-1][0] <= result["cpu_seconds"] + 1e-6
        eers = [eer for _, eer in result["curve"]]
        assert eers == sorted(eers, reverse=True)
    # Both began with the recipe's own values and seed.
    assert hand["curve"][0][1] == tuned["curve"][0][1]
    assert tuned["overhead_seconds"] > 0
    assert (folder / "tuning.png").read_bytes()[:4] == b"\x89PNG"
    own = json.loads((folder / "again_own" / "result.json").read_text())["eers"]
    assert len(own) == 1 and 0 <= own[0] <= 1
    # What was found is trained again, but where it is the recipe's own.
    for name, result in (("hand", hand), ("tune", tuned)):
        is_own = result["best_params"] == {"lr": plain_values(RECIPE, {})["lr"]}
        assert (folder / f"again_{name}_1" / "result.json").exists() != is_own
    assert "| 1 | 2 |" in (folder / "tuning.md").read_text()
    # Its results are not shown as those of another search.
    monkeypatch.chdir(tmp_path)
    assert tuning.main([*options, "--n_trials", "3"]) == 2
    assert "was begun with n_trials 2, not 3" in capsys.readouterr().err


def test_a_trial_that_fails_is_one_of_the_study(tmp_path, monkeypatch):
    """And is not tried again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").write_text(SEARCH)
    options = tuning.parse(["--recipe", RECIPE, "--search", "search.yaml"])
    search = read_search(options.search, RECIPE, {}, ["eer"])
    tried = []

    def train(options, search, params, seed, folder, reports):
        tried.append(folder.name)
        if len(tried) == 1:
            raise RunError("the loss is not finite")
        study = optuna.load_study(
            study_name="by_hand", storage=reports["OPTUNA_STORAGE"]
        )
        study.tell(int(reports["OPTUNA_TRIAL_NUMBER"]), 0.25)

    monkeypatch.setattr(tuning, "train", train)
    found = tuning.by_hand(tmp_path, search, options, 1)
    assert tried == ["0", "1"]
    assert [eer for _, eer in found["curve"]] == [float("inf"), 0.25]
    assert found["best_eer"] == 0.25 and found["n_trials"] == 2


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("sys.exit('train_speaker.py: the loss is not finite')", RunError),
        ("raise ValueError('train_speaker.py: is broken')", InputError),
    ],
)
def test_a_crash_is_no_failed_trial(end, kind, tmp_path, monkeypatch):
    """It has the status of one."""
    (tmp_path / "train_speaker.py").write_text(f"import sys\n{end}\n")
    monkeypatch.setattr(tuning, "ROOT", tmp_path)
    search_file = str(ROOT / "hparams" / "search" / "conformer.yaml")
    options = tuning.parse(["--recipe", RECIPE, "--search", search_file])
    search = read_search(options.search, RECIPE, {}, ["eer"])
    with pytest.raises(InputError) as error:
        tuning.train(options, search, {}, 1, tmp_path)
    assert type(error.value) is kind


def test_a_study_without_a_complete_trial_has_no_result(tmp_path, monkeypatch):
    (tmp_path / "search.yaml").write_text(SEARCH)
    search_file = str(tmp_path / "search.yaml")
    options = tuning.parse(["--recipe", RECIPE, "--search", search_file])
    search = read_search(options.search, RECIPE, {}, ["eer"])

    def train(options, search, params, seed, folder, reports):
        raise RunError("the loss is not finite")

    monkeypatch.setattr(tuning, "train", train)
    with pytest.raises(RunError, match="no trial is complete"):
        tuning.by_hand(tmp_path, search, options, 1)
