"""YAML files and overrides: what becomes of them, and of mistakes in them."""

from pathlib import Path

import pytest
import torch

from local_modules.config import (
    check_overrides,
    check_ranges,
    load_hparams,
    plain_values,
    texts,
)
from tests.hparams.trees import HPARAMS, SYSTEMS
from tests.mistakes import message

CONFORMER = str(HPARAMS / "conformer.yaml")


class TestOverrides:
    def test_known_keys_pass(self):
        check_overrides(CONFORMER, {"lr": 1, "emb_dim": 2, "output_folder": "x"})

    @pytest.mark.parametrize("key", ["loss", "opt_class", "modules"])
    def test_objects_are_no_values(self, key):
        text = message(check_overrides, CONFORMER, {key: "AdditiveMarginSoftmax"})
        assert text.startswith(f"--{key}: is not a plain value in {CONFORMER}; ")

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [("emb_dimm", "emb_dim"), ("n_block", "n_blocks"), ("LR", None)],
    )
    def test_unknown_key_names_the_nearest(self, key, nearest):
        text = message(check_overrides, CONFORMER, {"lr": 1, key: 2})
        assert text.startswith(f"--{key}: {CONFORMER}")
        if nearest:
            assert nearest in text.partition("the nearest are")[2].split(", ")[0]

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("lr", "fast", "a number"),
            ("lr", True, "a number"),
            ("lr", None, "a number"),
            ("n_blocks", 2.5, "an integer"),
            ("n_blocks", "2", "an integer"),
            ("add_noise", 1, "True or False"),
            ("speaker_speeds", 0.9, "a list, as in [1.0,0.9]"),
        ],
    )
    def test_another_kind_of_value(self, key, value, words):
        text = message(check_overrides, CONFORMER, {key: value})
        assert text == f"--{key} {value}: has to be {words}"

    def test_numbers_and_what_has_none_take_their_like(self):
        values = {"lr": 1, "train_time_limit_minutes": 2.5, "trials": "a.txt"}
        values |= {"parts": "1+2", "speaker_speeds": [1.0, 0.9]}
        check_overrides(CONFORMER, values | {"add_noise": False})

    def test_a_limit_can_be_taken_away(self):
        speech = str(HPARAMS / "conformer_speech.yaml")
        overrides = {"train_time_limit_minutes": None}
        check_overrides(speech, overrides)
        assert plain_values(speech, overrides)["train_time_limit_minutes"] is None
        assert plain_values(speech, {})["train_time_limit_minutes"] == 20.0

    @pytest.mark.parametrize("key", ["output_folder", "manifest_folder", "save_folder"])
    def test_a_run_is_written_somewhere(self, key):
        text = message(check_overrides, CONFORMER, {key: None})
        assert text == f"--{key} null: has to be a folder to write to"

    def test_nested_key_is_not_top_level(self):
        assert "--channels" in message(check_overrides, CONFORMER, {"channels": 8})


@pytest.mark.parametrize("function", [check_overrides, load_hparams])
class TestBadFiles:
    def test_missing(self, function, tmp_path):
        path = str(tmp_path / "none.yaml")
        assert message(function, path, {}).startswith(path)

    def test_folder(self, function, tmp_path):
        assert message(function, str(tmp_path), {}).startswith(str(tmp_path))

    @pytest.mark.parametrize(
        "content", [b"a: [1\nb: 2", b"a: 1\n  b: 2\n", b"a: \xff\xfe\n", b"\x00"]
    )
    def test_broken(self, function, tmp_path, content):
        path = tmp_path / "broken.yaml"
        path.write_bytes(content)
        assert message(function, str(path), {}).startswith(str(path))


@pytest.mark.parametrize("content", ["- a\n- b\n", "", "hello\n", "3\n"])
def test_file_without_keys(tmp_path, content):
    path = tmp_path / "list.yaml"
    path.write_text(content)
    text = message(check_overrides, str(path), {})
    assert text == f"{path}: is not a mapping of keys to values"


class TestPlainValues:
    def test_references_are_resolved(self):
        values = plain_values(CONFORMER, {"seed": 7, "corpus": "folder"})
        assert values["output_folder"] == "results/conformer/7"
        assert values["save_folder"] == "results/conformer/7/save"
        assert values["data_folder"] == "data/folder"
        assert values["lr"] == 0.0096 and isinstance(values["lr"], float)
        assert values["trials"] is None
        assert values["speed_perturb"] is False

    def test_objects_are_left_out(self):
        values = plain_values(CONFORMER, {})
        text = Path(CONFORMER).read_text(encoding="utf-8")
        tops = [line for line in text.splitlines() if line[:1].isalpha()]
        objects = {
            line.partition(":")[0]
            for line in tops
            if ": !" in line and "!ref" not in line and "PLACEHOLDER" not in line
        }
        assert {"embedding_model", "checkpointer", "opt_class"} <= objects
        assert not objects & set(values)
        plain = {line.partition(":")[0] for line in tops} - objects
        assert plain - {"modules"} <= set(values)  # a mapping of objects

    def test_dangling_reference(self, tmp_path):
        path = tmp_path / "dangling.yaml"
        path.write_text("a: !ref <b>\n")
        assert message(plain_values, str(path), {}).startswith(str(path))


class TestLoad:
    @pytest.mark.parametrize(
        ("overrides", "named"),
        [
            ({"kernel_size": 4}, "kernel_size 4"),
            ({"subsampling": 3}, "3"),
            ({"n_heads": 5}, "5 heads"),
            ({"emb_dim": "wide"}, ""),
            ({"sample_rate": None}, ""),
        ],
    )
    def test_bad_value_is_one_line(self, overrides, named, tmp_path):
        overrides = {"n_speakers": 3, "output_folder": str(tmp_path), **overrides}
        text = message(load_hparams, CONFORMER, overrides)
        assert text.startswith(f"{CONFORMER}: ")
        assert named in text

    def test_unreplaced_placeholder(self):
        assert "n_speakers" in message(load_hparams, CONFORMER, {})

    @pytest.mark.parametrize("hparams_file", SYSTEMS)
    def test_every_system_embeds(self, hparams_file, tmp_path):
        hparams = load_hparams(
            hparams_file, {"n_speakers": 5, "output_folder": str(tmp_path)}
        )
        wavs = torch.randn(2, hparams["sample_rate"])
        lens = torch.tensor([1.0, 0.5])
        model = hparams["embedding_model"].eval()
        with torch.no_grad():
            feats = hparams["compute_features"](wavs)
            embeddings = model(hparams["mean_var_norm"](feats, lens), lens)
            cosines = hparams["classifier"](embeddings)
        assert embeddings.shape == (2, 1, hparams["emb_dim"])
        assert embeddings.isfinite().all()
        assert cosines.shape[-1] == 5 and cosines.abs().max() <= 1.00001
        recoverables = hparams["checkpointer"].recoverables
        assert recoverables["embedding_model"] is model
        assert Path(hparams["save_folder"]).parent == tmp_path


@pytest.mark.parametrize("hparams_file", SYSTEMS)
def test_comment_on_the_command_line_names_keys_of_the_file(hparams_file):
    """The head of each file shows overrides; they must be ones that work."""
    head = Path(hparams_file).read_text(encoding="utf-8").partition("\n\n#")[0]
    words = [word for word in head.split() if word.startswith("--")]
    keys = {word.removeprefix("--"): 1 for word in words}
    check_overrides(hparams_file, keys)


def test_texts_differ_where_a_value_or_a_class_does(tmp_path):
    text = Path(CONFORMER).read_text(encoding="utf-8")
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("AttentiveStatisticsPooling", "StatisticsPooling"))
    own = texts(CONFORMER, {})
    changed = {key for key, line in texts(str(other), {}).items() if line != own[key]}
    assert changed == {"embedding_model", "averaged_model", "modules", "checkpointer"}
    lr = texts(CONFORMER, {"lr": 0.5})
    assert {key for key in lr if lr[key] != own[key]} == {
        "lr",
        "lr_schedule",
        "opt_class",
    }
    assert own["seed"] == "1234" and own["trials"] == "null"
    assert not any("\n" in line for line in own.values())


def test_ranges():
    check_ranges({"weight_decay": 0, "lr": 0, "num_workers": 0, "seed": 0})
    for key in ("valid_batch_size", "batch_size", "number_of_epochs"):
        assert f"--{key} 0: has to be" in message(check_ranges, {key: 0})
    assert "--crop_seconds 0.05: has to be 0.1 or more" in message(
        check_ranges, {"crop_seconds": 0.05}
    )
    check_ranges({"augment_prob": 0, "sample_rate": 8000})
    check_ranges({"augment_prob": 1.0})
    for share in (60, 1.01, -0.1, float("nan")):
        text = message(check_ranges, {"augment_prob": share})
        assert text == f"--augment_prob {share}: has to be from 0 to 1"
    for rate in (0, 8):
        text = message(check_ranges, {"sample_rate": rate})
        assert text == f"--sample_rate {rate}: has to be 1000 or more"
