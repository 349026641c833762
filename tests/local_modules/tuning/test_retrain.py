"""Full trainings over several seeds, by a training that takes no time."""

import json
from pathlib import Path

import pytest

from local_modules.config import resolved_text
from local_modules.corpus import TRAINED, note_corpus
from local_modules.errors import InputError
from local_modules.tuning.retrain import retrain

SYSTEMS = {"defaults": (0, {"lr": 0.1}), "best": (4, {"lr": 0.2})}


def train(hparams_file, run_opts, overrides):
    """Error rates that tell the systems and the seeds apart."""
    eer = overrides["lr"] + overrides["seed"]
    return {"valid": {"eer": eer}, "test": {"eer": 2 * eer, "min_dcf": 3 * eer}}


def test_a_row_for_each_system(tmp_path):
    path = tmp_path / "retrained.json"
    results = retrain("a.yaml", SYSTEMS, [1, 2], path, None, train)
    assert json.loads(path.read_text()) == results
    assert list(results) == ["defaults", "best"]
    assert results["best"] == {
        "trial": 4,
        "seeds": [1, 2],
        "valid_eer": [1.2, 2.2],
        "test_eer": [2.4, 4.4],
        "test_min_dcf": pytest.approx([3.6, 6.6]),
    }


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "n_speakers: 3\nlr: 0\nseed: 0\nnumber_of_epochs: 5\noutput_folder: x\n"
        f"save_folder: !ref <output_folder>/save\nmanifest_folder: {tmp_path}/m\n"
    )
    (tmp_path / "m").mkdir()
    for name in TRAINED:
        (tmp_path / "m" / name).write_text(name)
    return str(path)


def test_a_finished_training_is_not_done_again(recipe, tmp_path):
    trained = []

    def train_and_write(hparams_file, run_opts, overrides):
        metrics = train(hparams_file, run_opts, overrides)
        trained.append((overrides["lr"], overrides["seed"]))
        folder = Path(overrides["output_folder"])
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        text = resolved_text(hparams_file, overrides)
        (folder / "hyperparams.yaml").write_text(text)
        (folder / "save").mkdir()
        note_corpus(folder / "save", tmp_path / "m")
        return metrics

    path = tmp_path / "retrained.json"
    first = retrain(recipe, SYSTEMS, [1], path, None, train_and_write)
    both = retrain(recipe, SYSTEMS, [1, 2], path, None, train_and_write)
    assert trained == [(0.1, 1), (0.2, 1), (0.1, 2), (0.2, 2)]
    assert both["best"]["test_eer"] == [*first["best"]["test_eer"], 4.4]

    # With other settings it would be another one.
    longer = {
        name: (n, {**o, "number_of_epochs": 9}) for name, (n, o) in SYSTEMS.items()
    }
    told = "trial_0/1: holds a run with number_of_epochs 5, not 9"
    with pytest.raises(InputError, match=told):
        retrain(recipe, longer, [1, 2], path, None, train_and_write)
    # On other test trials, too.
    (tmp_path / "m" / "test_trials.txt").write_text("others")
    with pytest.raises(InputError, match="test_trials.txt: has changed since "):
        retrain(recipe, SYSTEMS, [1, 2, 3], path, None, train_and_write)
    assert json.loads(path.read_text()) == both and len(trained) == 4


@pytest.mark.parametrize("interrupted", [0, 4])
def test_an_interruption_keeps_the_seeds_that_all_systems_have(interrupted, tmp_path):
    path = tmp_path / "retrained.json"

    def train_until(hparams_file, run_opts, overrides):
        folder = Path(overrides["output_folder"])
        if folder.relative_to(tmp_path).parts[1:] == (f"trial_{interrupted}", "2"):
            raise KeyboardInterrupt
        return train(hparams_file, run_opts, overrides)

    with pytest.raises(KeyboardInterrupt):
        retrain("a.yaml", SYSTEMS, [1, 2, 3], path, None, train_until)
    results = json.loads(path.read_text())
    assert [row["seeds"] for row in results.values()] == [[1], [1]]
    assert [row["valid_eer"] for row in results.values()] == [[1.1], [1.2]]
