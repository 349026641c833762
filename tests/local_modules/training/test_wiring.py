"""Recipes with a part that would be lost, or not be trained, without a word."""

from pathlib import Path

import pytest

from local_modules.config import load_hparams
from local_modules.errors import InputError
from local_modules.training.wiring import check_wiring

RECIPE = Path(__file__).parents[3] / "hparams" / "conformer.yaml"
FBANK = "compute_features: !new:speechbrain.lobes.features.Fbank\n"
TRAINABLE_FILTERS = FBANK, FBANK + "    requires_grad: True\n"
RUNNING_MEAN = (
    "local_modules.normalization.SentenceMeanNorm\n    per_band: !ref <norm_per_band>",
    "speechbrain.processing.features.InputNormalization",  # norm_type: global
)
LOSS = (
    "loss: !new:local_modules.losses.AdditiveAngularMargin\n"
    "    angular_margin: !ref <angular_margin>\n"
    "    angular_scale: !ref <angular_scale>\n",
    "loss: !new:torch.nn.AdaptiveLogSoftmaxWithLoss\n"
    "    in_features: 256\n    n_classes: 6\n    cutoffs: [3]\n",
)
LOSS_TRAINED = ("modules:\n", "modules:\n    loss: !ref <loss>\n")
LOSS_KEPT = ("    recoverables:\n", "    recoverables:\n        loss: !ref <loss>\n")
NOT_A_MODULE = ("    mean_var_norm: !ref <mean_var_norm>\n", "")
IN_A_LIST = (  # as in SpeechBrain's recipes for speech recognition
    """        embedding_model: !ref <embedding_model>
        averaged_model: !ref <averaged_model>
        classifier: !ref <classifier>
""",
    """        model: !new:torch.nn.ModuleList
            - [!ref <embedding_model>, !ref <classifier>]
        averaged_model: !ref <averaged_model>
""",
)
CLASSIFIER_LOST = (
    "        classifier: !ref <classifier>\n        epoch",
    "        epoch",
)
SCHEDULER = (
    "local_modules.training.schedules.WarmupCosine\n    lr: !ref <lr>\n"
    "    warmup_share: !ref <warmup_share>\n",
    "speechbrain.nnet.schedulers.CyclicLRScheduler\n"
    "    base_lr: 0.1\n    max_lr: 0.2\n",
)
TEXT = RECIPE.read_text(encoding="utf-8")
UNWRAPPED = (
    TEXT[TEXT.index("feats_augment: ") : TEXT.index("\nmodules:")],
    "feats_augment: !new:speechbrain.augment.freq_domain.Warping\n",
)
AVERAGES_LOST = ("        averaged_model: !ref <averaged_model>\n", "")


def check(path, *changes):
    """Checks the recipe with changes to its text."""
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    hparams = load_hparams(str(path), {"n_speakers": 6})
    check_wiring(str(path), hparams, {"compile_module_keys": None})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([TRAINABLE_FILTERS], "compute_features learns in training"),
        ([RUNNING_MEAN], "mean_var_norm learns in training"),
        ([LOSS], "loss has parameters"),
        ([LOSS, LOSS_TRAINED], "loss has parameters"),
        ([LOSS, LOSS_KEPT], "loss has parameters"),
        ([CLASSIFIER_LOST], "classifier has parameters"),
        ([NOT_A_MODULE], "mean_var_norm has to be among the modules"),
        ([SCHEDULER], "lr_schedule has to give a number"),
        ([UNWRAPPED], "feats_augment has no replicate_labels"),
        ([AVERAGES_LOST], "its checkpointer has no averaged_model"),
    ],
)
def test_what_would_be_lost_is_told(changes, told, tmp_path):
    path = tmp_path / "own.yaml"
    with pytest.raises(InputError, match=told) as caught:
        check(path, *changes)
    assert f"{caught.value}".startswith(f"{path}: ")


@pytest.mark.parametrize("changes", [[], [LOSS, LOSS_TRAINED, LOSS_KEPT], [IN_A_LIST]])
def test_what_is_kept_passes(changes, tmp_path):
    check(tmp_path / "own.yaml", *changes)
