"""A run is never continued as another."""

import json
import shutil
from pathlib import Path

import pytest
from speechbrain.utils.run_opts import RunOptions

from local_modules.config import resolved_text
from local_modules.training import continuing
from local_modules.training.continuing import (
    check_continues,
    check_same_options,
    note_options,
)
from tests.mistakes import message

CONFORMER = str(Path(__file__).parents[3] / "hparams" / "conformer.yaml")


@pytest.fixture
def run(tmp_path):
    """A run's folder with the settings as SpeechBrain writes them."""
    text = resolved_text(CONFORMER, {"n_speakers": 3, "lr": 0.01})
    head = "# Generated 2026-01-01 from:\n# conformer.yaml\n# yamllint disable\n"
    (tmp_path / "hyperparams.yaml").write_text(head + text)
    return str(tmp_path)


def test_record_is_missing(tmp_path):
    text = message(check_continues, str(tmp_path), CONFORMER, {})
    assert text.startswith(str(tmp_path / "hyperparams.yaml"))


def test_same_settings(run):
    check_continues(run, CONFORMER, {"lr": 0.01})


@pytest.mark.parametrize(
    "free",
    [
        {"number_of_epochs": 99},
        {"train_time_limit_minutes": 5},
        {"num_workers": 3, "valid_batch_size": 7, "max_bad_share": 0.5},
        {"cache_gib": 0.5, "shard_cache": "x", "skip_prep": True},
        {"nonfinite_patience": 9},
        # `./run` for `run`, or a folder that has been renamed
        {"output_folder": "./run"},
        {"output_folder": "moved"},  # and with it save_folder
        {"output_folder": "moved", "save_folder": "results/conformer/1234/save"},
        {"manifest_folder": "b", "trials": CONFORMER},
    ],
)
def test_free_keys(run, free):
    check_continues(run, CONFORMER, {"lr": 0.01, **free})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.02),
        ("seed", 5),
        ("corpus", "folder"),
        ("spec_augment", True),
        ("save_folder", "another/save"),  # with another run's checkpoints
        ("trials", "no_such_list.txt"),
    ],
)
def test_changed_key(run, key, value):
    text = message(check_continues, run, CONFORMER, {"lr": 0.01, key: value})
    assert text.startswith(f"{run}: holds a run with {key} ")
    assert f", not {value};" in text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "pooling.AttentiveStatistics",
            "pooling.Statistics",
            "embedding_model.pooling !name:local_modules.pooling."
            "AttentiveStatisticsPooling, not !name:local_modules.pooling.Statist",
        ),
        ("torch.optim.AdamW", "torch.optim.Adam", "opt_class !name:torch.optim."),
        ("channels: 16", "channels: 8", "encoder.subsampling.channels 16, not 8"),
        ("[95, 105]", "[95, 100]", "augmentations[2].speeds[1] 105, not 100"),
        ("[95, 105]", "[95]", "augmentations[2].speeds [95, 105], not [95]"),
        ("max_augmentations: 2", "max_augmentations: 3", "_augmentations 2, not 3"),
        ("SpeedPerturb", "Resample", "[2] !new:speechbrain.augment.time_domain."),
    ],
)
def test_changed_inside_an_object(run, tmp_path, old, new, told):
    other = tmp_path / "other.yaml"
    shutil.copy(CONFORMER, other)
    text = other.read_text()
    assert text.count(old) == 1
    other.write_text(text.replace(old, new))
    complaint = message(check_continues, run, str(other), {"lr": 0.01})
    assert complaint.startswith(f"{run}: holds a run with ")
    assert told in complaint


def test_a_hash_within_a_text_is_no_remark(run):
    """It was cut off with what looks like a remark."""
    given = {"lr": 0.01, "noise_folder": "/noise/take #1"}
    (Path(run) / "hyperparams.yaml").write_text(
        resolved_text(CONFORMER, given | {"n_speakers": 3})
    )
    check_continues(run, CONFORMER, given)
    given["noise_folder"] = "/noise/take #2"
    assert "take #1, not /noise/take #2;" in message(
        check_continues, run, CONFORMER, given
    )


def test_shards_may_move_but_not_come_or_go(run):
    """With them, utterances have another order, also within an epoch."""
    place = Path(run) / "hyperparams.yaml"
    for before, now, is_same in (
        ("/a", "http://b", True),
        ("/a", None, False),
        (None, "/a", False),
    ):
        given = {"lr": 0.01, "shards": before}
        place.write_text(resolved_text(CONFORMER, given | {"n_speakers": 3}))
        given["shards"] = now
        if is_same:
            check_continues(run, CONFORMER, given)
        else:
            assert "shards" in message(check_continues, run, CONFORMER, given)


def test_removed_key(run, tmp_path):
    other = tmp_path / "other.yaml"
    text = Path(CONFORMER).read_text(encoding="utf-8")
    other.write_text(text.replace("crop_seconds: 2.0\n", "", 1))
    text = message(check_continues, run, str(other), {"lr": 0.01})
    assert "crop_seconds 2.0, not None" in text


def test_a_remark_is_no_setting(run, tmp_path):
    other = tmp_path / "other.yaml"
    lines = Path(CONFORMER).read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("speaker_speeds: [1.0] ") for line in lines)
    kept = [line.partition(" #")[0] for line in lines if not line.startswith("#")]
    modules = kept.index("modules:")  # a remark behind a mapping, and one within
    kept[modules:modules] = ["# here", ""]
    kept.insert(kept.index("    recoverables:"), "    # there")
    other.write_text("\n".join(kept))
    check_continues(run, str(other), {"lr": 0.01})


def test_broken_record(tmp_path):
    (tmp_path / "hyperparams.yaml").write_text("a: [1\n")
    text = message(check_continues, str(tmp_path), CONFORMER, {})
    assert str(tmp_path / "hyperparams.yaml") in text


def options(**given):
    return RunOptions.from_dictionary(given)


class TestOptions:
    @pytest.fixture
    def settings(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "embedding_model.safetensors").write_bytes(b"1")
        return {"save_folder": str(tmp_path), "pretrained": str(tmp_path / "model")}

    def test_the_same(self, settings):
        note_options(options(precision="bf16"), settings)
        check_same_options(options(precision="bf16", debug=True), settings)

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"precision": "bf16"}, "--precision fp32, not bf16"),
            ({"grad_accumulation_factor": 4}, "--grad_accumulation_factor 1, not 4"),
            (
                {"remove_vector_weight_decay": True},
                "--remove_vector_weight_decay False, not True",
            ),
        ],
    )
    def test_another_option(self, settings, given, told):
        note_options(options(), settings)
        assert told in message(check_same_options, options(**given), settings)

    def test_what_was_not_noted_yet_is_no_difference(self, settings):
        note_options(options(), settings)
        path = Path(settings["save_folder"]) / continuing.OPTIONS
        noted = json.loads(path.read_text())
        del noted["precision"]
        path.write_text(json.dumps(noted))
        check_same_options(options(precision="bf16"), settings)

    def test_another_number_of_processes(self, settings, monkeypatch):
        note_options(options(), settings)
        monkeypatch.setattr(continuing, "rank_and_count", lambda: (0, 2))
        told = message(check_same_options, options(), settings)
        assert "a number of processes of 1, not 2" in told

    def test_a_test_may_have_another_number(self, settings, monkeypatch):
        note_options(options(grad_accumulation_factor=4), settings)
        monkeypatch.setattr(continuing, "rank_and_count", lambda: (0, 2))
        check_same_options(options(test_only=True), settings)
        told = message(
            check_same_options, options(test_only=True, precision="bf16"), settings
        )
        assert "--precision fp32, not bf16" in told

    def test_other_pretrained_weights(self, settings):
        """Of the same folder, which another training has written anew."""
        note_options(options(), settings)
        Path(settings["pretrained"], "embedding_model.safetensors").write_bytes(b"2")
        told = message(check_same_options, options(), settings)
        assert "embedding_model.safetensors of SHA-256 " in told

    def test_a_trial_list_may_move_but_not_change(self, settings, tmp_path):
        lists = [tmp_path / name for name in ("one", "moved", "other")]
        for path, text in zip(lists, ("1 a b", "1 a b", "1 a c"), strict=True):
            path.write_text(text)
        one, moved, other = ({**settings, "trials": str(path)} for path in lists)
        note_options(options(), one)
        check_same_options(options(), moved)
        for another in (other, settings):
            told = message(check_same_options, options(), another)
            assert "holds a run with --trials of SHA-256 " in told
        note_options(options(), settings)
        told = message(check_same_options, options(), one)
        assert "holds a run with --trials of SHA-256 None, not " in told

    def test_a_key_of_the_recipe_is_compared_as_such(self, settings):
        settings["precision"] = "fp32"
        note_options(options(), settings)
        check_same_options(options(precision="bf16"), settings)
