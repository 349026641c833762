"""The large recipe, very small: on files that lie and are named as VoxCeleb's."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from speechbrain import Stage

import train_speaker
from conftest import SAMPLE_RATE, utterance, voice
from local_modules.audio import ReadableBatch, SpeechCache
from local_modules.config import load_hparams
from tests.hparams.trees import HPARAMS, lines

pytestmark = pytest.mark.usefixtures("no_pictures")
RECIPE = str(HPARAMS / "voxceleb.yaml")
# What the header of the file names a source for.
OWN = {
    "corpus",
    "valid_share",
    "parts",
    "output_folder",
    "number_of_epochs",
    "batch_size",
    "speaker_speeds",
    "weight_decay",
    "warmup_share",
    "average_age",
    "num_workers",
    "cache_gib",
    "d_model",
    "n_heads",
    "emb_dim",
    "margin_ramp_start",
    "margin_ramp_end",
}
TINY = {"d_model": 16, "n_blocks": 1, "n_heads": 2, "d_ffn": 16, "emb_dim": 16}
TINY |= {"batch_size": 8, "crop_seconds": 0.8, "number_of_epochs": 3, "num_workers": 0}


def test_what_is_not_its_own_is_as_in_mfa_conformer():
    theirs, ours = lines("mfa_conformer"), lines("voxceleb")
    assert ours.keys() - theirs.keys() == {"precision"}
    assert not theirs.keys() - ours.keys()
    changed = {key for key in theirs if theirs[key] != ours[key]}
    assert changed == OWN


def test_its_size():
    model = load_hparams(RECIPE, {"n_speakers": 3})["embedding_model"]
    n = sum(parameter.numel() for parameter in model.parameters())
    assert n / 1e6 == pytest.approx(40.14, abs=0.005)


def test_bf16_is_near_float32():
    """A step of both from the same weights: embeddings, loss, gradients; and past the
    embeddings there is no bf16."""
    overrides = {"n_speakers": 30, "d_model": 64, "n_blocks": 2, "n_heads": 2}
    overrides |= {"d_ffn": 64, "dropout": 0.0, "augment_prob": 0, "spec_augment": False}
    speakers = torch.arange(16) % 5
    batch = ReadableBatch(
        [
            {"id": f"{n}", "sig": wave, "spk_id_encoded": speaker.view(1)}
            for n, (wave, speaker) in enumerate(
                zip(torch.randn(16, 16000), speakers, strict=True)
            )
        ]
    )
    found = []
    for precision in ("fp32", "bf16"):
        hparams = load_hparams(RECIPE, overrides)  # seeds, so the weights are the same
        brain = train_speaker.SpeakerBrain(
            hparams["modules"], None, hparams, {"device": "cpu", "precision": precision}
        )
        brain.margin_share = 1.0
        with brain.training_ctx:
            embeddings = brain.compute_forward(batch, Stage.TRAIN)
            loss = brain.compute_objectives(embeddings, batch, Stage.TRAIN)
        assert loss == brain.compute_objectives(embeddings.float(), batch, Stage.TRAIN)
        loss.backward()
        gradients = [p.grad.flatten() for p in brain.modules.parameters()]
        assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients)
        found.append((embeddings.float(), loss.item(), torch.cat(gradients)))
    assert embeddings.dtype == torch.bfloat16
    (wanted, loss, gradient), (rounded, rounded_loss, rounded_gradient) = found
    assert torch.cosine_similarity(wanted, rounded, dim=-1).min() > 0.999
    assert rounded_loss == pytest.approx(loss, rel=0.01)
    assert torch.cosine_similarity(gradient, rounded_gradient, dim=0) > 0.99


def test_in_bf16_waveforms_are_augmented_in_float32():
    """Noise, rooms and filters, in any order."""
    hparams = load_hparams(RECIPE, {"n_speakers": 3, "augment_prob": 1.0})
    brain = train_speaker.SpeakerBrain(
        hparams["modules"], None, hparams, {"device": "cpu", "precision": "bf16"}
    )
    dtypes = []
    hparams["compute_features"].register_forward_pre_hook(
        lambda module, inputs: dtypes.append(inputs[0].dtype)
    )
    batch = ReadableBatch(
        [{"id": f"{n}", "sig": wave} for n, wave in enumerate(torch.randn(2, 8000))]
    )
    with brain.training_ctx, torch.no_grad():
        for _ in range(20):
            brain.compute_forward(batch, Stage.TRAIN)
    assert dtypes == [torch.float32] * 20


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.VALID])
def test_only_training_is_augmented(stage):
    small = {**TINY, "augment_prob": 1.0, "spec_augment": True, "n_speakers": 3}
    hparams = load_hparams(RECIPE, small)
    brain = train_speaker.SpeakerBrain(
        hparams["modules"], None, hparams, {"device": "cpu"}
    )
    brain.cache, brain.features_text = SpeechCache(0.0), ""
    heard = []
    model = "embedding_model" if stage == Stage.TRAIN else "averaged_model"
    for part in ("compute_features", model):
        hparams[part].register_forward_pre_hook(
            lambda _, inputs: heard.append(inputs[0])
        )
    waves = torch.randn(4, 8000)
    rows = [{"id": f"{n}", "name": f"{n}.wav"} for n in range(4)]
    batch = ReadableBatch(
        [{**row, "sig": wave} for row, wave in zip(rows, waves, strict=True)]
    )
    with torch.no_grad():
        brain.compute_forward(batch, stage)
    is_other = not torch.equal(heard[0], waves)
    is_masked = any((heard[1] == 0).all(dim=dim).any() for dim in (1, 2))
    assert (is_other, is_masked) == 2 * (stage == Stage.TRAIN,)


@pytest.fixture(scope="module")
def vox(tmp_path_factory):
    """Six training speakers of VoxCeleb1, two of VoxCeleb2, and two test speakers."""
    root = tmp_path_factory.mktemp("vox")
    rng = np.random.default_rng(0)
    homes = {f"vox1/dev/wav/id{n}": "wav" for n in range(10001, 10007)}
    homes |= {f"vox2/dev/aac/id{n:05d}": "flac" for n in (12, 15)}
    homes |= {f"vox1/test/wav/id{n}": "wav" for n in (10270, 10309)}
    for home, suffix in homes.items():
        pitch, formants = voice(rng)
        for video in ("1zcIwhmdeo4", "7gWzIy6yIIk"):
            (root / home / video).mkdir(parents=True)
            for number in (1, 2, 3):
                wave = utterance(pitch, formants, rng, rng.uniform(1.0, 1.4))
                path = root / home / video / f"{number:05d}.{suffix}"
                soundfile.write(path, wave, SAMPLE_RATE)
    one, other = (
        [f"id{n}/{v}/00001.wav" for v in ("1zcIwhmdeo4", "7gWzIy6yIIk")]
        for n in (10270, 10309)
    )
    trials = [(1, *one), (1, *other), (0, one[0], other[0]), (0, one[1], other[1])]
    lines = [" ".join(map(str, trial)) for trial in trials]
    (root / "veri_test2.txt").write_text("\n".join(lines) + "\n")
    return root


def trained(vox, output, **overrides):
    values = {"data_folder": vox, "output_folder": output, **TINY, **overrides}
    pairs = [text for key, value in values.items() for text in (f"--{key}", f"{value}")]
    assert train_speaker.main([RECIPE, *pairs, "--noprogressbar"]) == 0
    return json.loads((output / "metrics.json").read_text())


def test_it_trains_and_goes_on_with_a_large_margin(vox, tmp_path):
    """As docs/scale.md says it."""
    base, large = tmp_path / "base", tmp_path / "large_margin"
    metrics = trained(vox, base)
    assert metrics["n_speakers"] == 6  # two of the eight validate
    assert metrics["test"]["n_target"] == metrics["test"]["n_nontarget"] == 2
    weight = load_file(base / "model" / "classifier.safetensors")["weight"]
    assert weight.shape == (3 * 6, 16) and weight.dtype == torch.float32
    trained(
        vox,
        large,
        pretrained=base / "model",
        manifest_folder=base / "manifests",
        skip_prep=True,
        angular_margin=0.5,
        margin_ramp_start=0,
        margin_ramp_end=0,
        crop_seconds=1.2,
        lr=0.00001,
        spec_augment=False,
    )
    again = load_file(large / "model" / "classifier.safetensors")["weight"]
    assert not torch.equal(again, weight)
    torch.testing.assert_close(again, weight, atol=1e-3, rtol=0)
