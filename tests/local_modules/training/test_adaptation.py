"""Starting from a trained model: on small tensors, and on a real model folder."""

import math

import numpy as np
import pytest
import torch
from speechbrain.inference.speaker import EncoderClassifier
from torch import nn

from local_modules.class_parallel import SplitClassifier
from local_modules.config import load_hparams, resolved_text
from local_modules.errors import InputError
from local_modules.training.adaptation import (
    check_pretrained,
    check_same_model,
    distance,
    drift,
    freeze,
    frozen_modules,
    start_from,
)
from local_modules.trials import TrialList


@pytest.fixture
def recipe(trained_run):
    """The recipe of the trained run, its objects untrained and for three speakers, of
    which the run has had two."""
    names = sorted(
        line.split("'")[1]
        for line in (trained_run / "model/label_encoder.txt").read_text().splitlines()
        if line.startswith("'") and "=>" in line and "starting" not in line
    )
    path = str(trained_run / "hyperparams.yaml")
    values = {"n_speakers": 3}
    hparams = load_hparams(path, values)
    hparams["label_encoder"].update_from_iterable([names[3], "a stranger", names[1]])
    text = resolved_text(path, values)
    parts = ("embedding_model", "classifier", "label_encoder")
    return text, [hparams[part] for part in parts], (names[3], names[1])


def test_weights_come_and_those_of_speakers_by_their_names(trained_run, recipe):
    text, (embedding_model, classifier, encoder), (first, last) = recipe
    whole = load_hparams(str(trained_run / "hyperparams.yaml"), {})
    whole["label_encoder"].load(trained_run / "model/label_encoder.txt")
    of_the_stranger = classifier.weight[1].clone()
    old = start_from(str(trained_run / "model"), embedding_model, classifier, encoder)
    for name, value in embedding_model.state_dict().items():
        assert torch.equal(value, old.state_dict()[name])
    # Independently of the module under test: SpeechBrain's own loader of the folder.
    loaded = EncoderClassifier.from_hparams(
        source=str(trained_run / "model"), savedir=str(trained_run / "loaded")
    )
    feats, lens = torch.randn(2, 60, 80), torch.tensor([1.0, 0.7])
    with torch.no_grad():
        theirs = loaded.mods.embedding_model(feats, lens)
        torch.testing.assert_close(embedding_model.eval()(feats, lens), theirs)
    rows = loaded.mods.classifier.weight
    for row, name in ((0, first), (2, last)):
        at = whole["label_encoder"].encode_label(name)
        assert torch.equal(classifier.weight[row], rows[at])
    assert torch.equal(classifier.weight[1], of_the_stranger)
    assert classifier.weight.requires_grad
    assert not any(parameter.requires_grad for parameter in old.parameters())


def test_a_rank_gets_the_rows_of_its_speakers(trained_run, recipe):
    text, (embedding_model, classifier, encoder), _ = recipe
    folder = str(trained_run / "model")
    before = classifier.weight.detach().clone()
    start_from(folder, embedding_model, classifier, encoder)
    part = SplitClassifier(16, 3, angular_scale=30.0)
    part.rows, part.weight = range(1, 3), nn.Parameter(before[1:].clone())
    start_from(folder, embedding_model, part, encoder)
    assert not torch.equal(before[2], classifier.weight[2])
    assert torch.equal(part.weight, classifier.weight[1:])


def test_the_copy_stays_what_it_was(trained_run, recipe):
    text, (embedding_model, *others), _ = recipe
    old = start_from(str(trained_run / "model"), embedding_model, *others)
    before = [parameter.clone() for parameter in old.parameters()]
    with torch.no_grad():
        for parameter in embedding_model.parameters():
            parameter.add_(1.0)
    assert all(map(torch.equal, before, old.parameters()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("d_model: 16", "d_model: 32"), "d_model 16, the recipe 32"),
        (("n_mels: 80", "n_mels: 40"), "n_mels 80, the recipe 40"),
        (("per_band: true", "per_band: false"), "per_band True, the recipe False"),
        (
            ("pooling.AttentiveStatisticsPooling", "pooling.StatisticsPooling"),
            "AttentiveStatisticsPooling, the recipe !name",
        ),
    ],
)
def test_a_model_built_otherwise_is_named(trained_run, recipe, change, words):
    text, *_ = recipe
    assert change[0] in text
    with pytest.raises(InputError, match="^--pretrained ") as caught:
        check_pretrained(str(trained_run / "model"), text.replace(*change))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_dropout_may_differ(trained_run, recipe):
    text, *_ = recipe
    assert "dropout: 0.0" in text
    text = text.replace("dropout: 0.0", "dropout: 0.3")
    check_pretrained(str(trained_run / "model"), text)


@pytest.mark.parametrize("kind", ["nothing", "empty", "truncated", "text"])
def test_what_is_no_model_folder_is_one_line(kind, trained_run, recipe, tmp_path):
    text, parts, _ = recipe
    folder = tmp_path / "model"
    if kind != "nothing":
        folder.mkdir()
    if kind in ("truncated", "text"):
        for path in (trained_run / "model").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        weights = folder / "embedding_model.safetensors"
        octets = weights.read_bytes()[:1000] if kind == "truncated" else b"no weights"
        weights.write_bytes(octets)
    with pytest.raises(InputError, match="has to be a model folder") as caught:
        start_from(str(folder), *parts)
    assert "\n" not in str(caught.value)


def test_the_first_difference_of_lists_and_missing_keys():
    text = "{compute_features: {a: [1, 2]}, mean_var_norm: {}, embedding_model: {}}"
    check_same_model(text, text)
    with pytest.raises(ValueError, match="compute_features.a"):
        check_same_model(text, text.replace("2]", "3]"))
    with pytest.raises(ValueError, match="compute_features.a .* nothing"):
        check_same_model(text, text.replace("a: [1, 2]", ""))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.subsampling = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))


@pytest.mark.parametrize("n_blocks", [0, 1, 3])
def test_frozen_is_what_lies_below(n_blocks):
    model = nn.Module()
    model.encoder, model.pooling = Encoder(), nn.Linear(2, 2)
    freeze(model, n_blocks)
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    parts = {name.rpartition(".")[0] for name in names}
    blocks = {f"encoder.blocks.{index}" for index in range(n_blocks)}
    frozen = blocks | {"encoder.subsampling"} if n_blocks else set()
    assert parts == frozen
    found = frozen_modules(model)
    # All three blocks are all of their list, too.
    assert {n for n, m in model.named_modules() if m in found} - frozen <= {
        "encoder",
        "encoder.blocks",
    }
    assert all(model.get_submodule(name) in found for name in frozen)


@pytest.mark.parametrize("n_blocks", [-1, 4])
def test_no_more_blocks_than_there_are(n_blocks):
    model = nn.Module()
    model.encoder = Encoder()
    with pytest.raises(InputError, match="the encoder has 3"):
        freeze(model, n_blocks)


def test_distance_of_angles():
    angles = torch.tensor([0.0, math.pi / 3, math.pi])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=-1).unsqueeze(1)
    anchors = torch.tensor([[[5.0, 0.0]]]).expand(3, 1, 2)  # a length is no distance
    # 1 - cos: 0, 1/2 and 2.
    torch.testing.assert_close(distance(vectors, anchors), torch.tensor(2.5 / 3))


def test_drift_of_a_rotation():
    """All embeddings turn by a right angle: among themselves nothing changes, and with
    the old ones nothing is left."""
    before = {
        "a1": torch.tensor([1.0, 0.1]),
        "a2": torch.tensor([1.0, -0.1]),
        "b1": torch.tensor([0.1, 1.0]),
        "b2": torch.tensor([-0.1, 1.0]),
    }
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    after = {path: turn @ vector for path, vector in before.items()}
    trials = TrialList(
        np.array([True, True, False, False]),
        ["a1", "b1", "a1", "b2"],
        ["a2", "b2", "b1", "a2"],
    )
    still = drift(before, before, trials)
    assert still == pytest.approx({"cosine": 1.0, "eer_old": 0.0, "eer_across": 0.0})
    turned = drift(before, after, trials)
    assert turned["cosine"] == pytest.approx(0.0, abs=1e-6)
    assert turned["eer_old"] == 0.0
    # Old a1 meets new b1, which points the other way, and old b2 new a2, which is it.
    assert turned["eer_across"] == pytest.approx(0.5, abs=0.01)


def test_the_old_rate_is_the_old_models():
    """The new one confuses the speakers that the old one told apart."""
    one, other = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    before = {"a1": one, "a2": one, "b1": other, "b2": other}
    after = {"a1": one, "a2": other, "b1": other, "b2": one}
    trials = TrialList(
        np.array([True, True, False, False]),
        ["a1", "b1", "a1", "b1"],
        ["a2", "b2", "b2", "a2"],
    )
    assert drift(before, after, trials)["eer_old"] == 0.0
    assert drift(after, before, trials)["eer_old"] == 1.0


def test_across_models_the_enrolment_is_the_old_ones():
    """A recording of a fell upon b: tested by the new model, a target trial scores as
    a non-target one; enrolled by it, it never comes up."""
    one, other = torch.eye(2)
    before = {"a1": one, "a2": one, "b1": other}
    after = {"a1": one, "a2": other, "b1": other}
    labels = np.array([True, False])
    sides = ["a1", "a1"], ["a2", "b1"]
    assert drift(before, after, TrialList(labels, *sides))["eer_across"] == 0.5
    assert drift(before, after, TrialList(labels, *sides[::-1]))["eer_across"] == 0.0
