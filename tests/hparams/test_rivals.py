"""SpeechBrain's systems: sized as published, and trained as ours are."""

import pytest
import torch

from local_modules.config import load_hparams
from tests.hparams.trees import HPARAMS, lines

# What is a rival's own: its place, its network and how that is optimised; the margin is
# as published, where ours was searched.
OWN = {
    "output_folder",
    "batch_size",
    "crop_seconds",
    "lr",
    "weight_decay",
    "warmup_share",
    "angular_margin",
    "angular_scale",
    "n_mels",
    "emb_dim",
    "embedding_model",
    "opt_class",
    "spec_augment",
    "number_of_epochs",
}


@pytest.mark.parametrize("name", ["ecapa_tdnn", "resnet", "xvector"])
def test_what_is_no_rivals_own_is_as_in_our_recipe(name):
    """The files stand side by side; this keeps them so."""
    ours, theirs = lines("conformer"), lines(name)
    shared = (ours.keys() & theirs.keys()) - OWN
    assert {"loss", "wav_augment", "feats_augment", "lr_schedule"} <= shared
    for key in shared:
        assert theirs[key] == ours[key], key
    # What ours has beyond that is about its own network.
    network = {"d_model", "n_blocks", "n_heads", "d_ffn", "kernel_size"}
    network |= {"subsampling", "dropout", "frozen_blocks"}
    assert ours.keys() - theirs.keys() == network


@pytest.mark.parametrize(
    ("name", "overrides", "millions"),
    [
        # Desplanques et al., Interspeech 2020, table 1: 6.2 M and 14.7 M, the latter
        # with 1536 channels before the pooling. SpeechBrain's model card: 20.8 M.
        ("ecapa_tdnn", {}, 6.19),
        ("ecapa_tdnn", {"channels": 1024}, 20.77),
        # SpeechBrain's own classes, as its recipes call them.
        ("xvector", {}, 4.21),
        ("resnet", {}, 15.44),
    ],
)
def test_sizes(name, overrides, millions):
    path = str(HPARAMS / f"{name}.yaml")
    model = load_hparams(path, {"n_speakers": 3, **overrides})["embedding_model"]
    n = sum(parameter.numel() for parameter in model.parameters())
    assert n / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", ["xvector", "resnet"])
def test_padding_has_no_effect(name):
    torch.manual_seed(0)
    overrides = {"n_speakers": 3, "channels": 8, "emb_dim": 12}
    hparams = load_hparams(str(HPARAMS / f"{name}.yaml"), overrides)
    model = hparams["embedding_model"].eval()
    loudness = torch.tensor([5.0, 10.0, 20.0]).view(3, 1, 1)
    feats = loudness * torch.randn(3, 81, hparams["n_mels"])
    counts = (41, 81, 41)
    lens = torch.tensor([count / 81 for count in counts])
    with torch.no_grad():
        embeddings = model(feats, lens)
        alone = [
            model(row[None, :count])[0]
            for row, count in zip(feats, counts, strict=True)
        ]
    assert embeddings.shape == (3, 1, 12)
    # SpeechBrain's pooling adds noise of 1e-5 to 9e-5 to the means.
    torch.testing.assert_close(embeddings, torch.stack(alone), atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        padding_included = model.encoder(feats).view(3, 1, 12)
    assert (padding_included - embeddings)[[0, 2]].abs().max() > 0.01
