"""The systems whose training steps are timed, and the ways of timing them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import speechbrain as sb
import torch
import torchaudio
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier
from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper
from speechbrain.processing.features import InputNormalization

from local_modules.config import load_hparams, plain_values
from local_modules.embedder import SpeakerEmbedder
from local_modules.training.averaging import RecentAverage
from local_modules.training.unreadable import UnreadableRecordings
from train_speaker import SpeakerBrain

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("results/benchmarks/throughput")
RATE, HOP, N_MELS = 16000, 160, 80
# Of SpeechBrain's recipe: 32 utterances and four augmented copies of each.
ECAPA_CROPS, ECAPA_SECONDS = 5 * 32, 3.0
COMPILED = {"compile": True, "compile_module_keys": ["embedding_model"]}


@dataclass(frozen=True)
class Mode:
    """How a row is trained.

    Arguments
    ---------
    precision : str
        fp32 or bf16.
    compiled : bool
        Whether the embedding model is compiled.
    fused : bool
        Whether the optimiser's update is one kernel; SpeechBrain's never is.
    accumulation : int
        Steps whose gradients are summed before an update.
    """

    precision: str
    compiled: bool = False
    fused: bool = True
    accumulation: int = 1

    def run_opts(self, device: str) -> dict:
        """As SpeechBrain's run options."""
        return {
            "device": device,
            "precision": self.precision,
            "grad_accumulation_factor": self.accumulation,
            **(COMPILED if self.compiled else {}),
        }


MODES = {
    "fp32": Mode("fp32"),
    "bf16": Mode("bf16"),
    "bf16 compiled": Mode("bf16", compiled=True),
    "fp32 compiled": Mode("fp32", compiled=True),
    "fp32 not fused": Mode("fp32", fused=False),
    "fp32 accumulated": Mode("fp32", accumulation=4),
}


class EcapaBrain(sb.Brain):
    """SpeechBrain's VoxCeleb recipe without its augmentation."""

    def compute_forward(self, batch, stage):
        """Waveforms to the speakers' cosines."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        feats = self.modules.compute_features(wavs)
        feats = self.modules.mean_var_norm(feats, lens)
        return self.modules.classifier(self.modules.embedding_model(feats))

    def compute_objectives(self, predictions, batch, stage):
        """The loss of the recipe."""
        _, lens = batch.sig
        targets = batch.spk_id_encoded.data
        return self.hparams.compute_cost(predictions, targets, lens)


def ecapa(n_speakers: int, mode: Mode, device: str) -> sb.Brain:
    """SpeechBrain's recipe `train_ecapa_tdnn.yaml`, with its values."""
    modules = {
        "compute_features": Fbank(n_mels=80),
        "mean_var_norm": InputNormalization(norm_type="sentence", std_norm=False),
        "embedding_model": ECAPA_TDNN(
            80,
            channels=[1024, 1024, 1024, 1024, 3072],
            kernel_sizes=[5, 3, 3, 3, 1],
            dilations=[1, 2, 3, 4, 1],
            groups=[1, 1, 1, 1, 1],
            attention_channels=128,
            lin_neurons=192,
        ),
        "classifier": Classifier(192, out_neurons=n_speakers),
    }
    cost = LogSoftmaxWrapper(AdditiveAngularMargin(margin=0.2, scale=30))
    return EcapaBrain(
        modules,
        functools.partial(torch.optim.Adam, lr=0.001, weight_decay=0.000002),
        {"compute_cost": cost},
        mode.run_opts(device),
    )


class TorchaudioEncoder(torch.nn.Module):
    """torchaudio's Conformer as an encoder of `SpeakerEmbedder`.

    Arguments
    ---------
    like : torch.nn.Module
        The `ConformerEncoder` that it replaces; its subsampling is kept.
    n_heads, d_ffn, kernel_size, dropout
        As in `ConformerEncoder`.
    """

    def __init__(self, like, n_heads, d_ffn, kernel_size, dropout):
        super().__init__()
        self.subsampling, self.norm = like.subsampling, like.norm
        self.output_size = like.output_size
        n_blocks = len(like.blocks)
        d_model = like.output_size // n_blocks
        self.blocks = torchaudio.models.Conformer(
            d_model, n_heads, d_ffn, n_blocks, kernel_size, dropout
        ).conformer_layers

    def forward(self, feats, lens):
        """Crops of one length, so nothing is padded."""
        x = self.subsampling(feats, None).transpose(0, 1)
        outputs = []
        for block in self.blocks:
            x = block(x, None)
            outputs.append(x)
        return self.norm(torch.cat(outputs, dim=-1).transpose(0, 1)), None


def ours(
    recipe: str, n_speakers: int, mode: Mode, device: str, of_torchaudio: bool = False
) -> sb.Brain:
    """A recipe of `hparams/`, with torchaudio's Conformer or ours."""
    overrides = {"n_speakers": n_speakers, "output_folder": str(FOLDER / recipe)}
    overrides |= {"augment_prob": 0.0, "spec_augment": False}
    hparams = load_hparams(recipe_file(recipe), overrides)
    if of_torchaudio:
        model = hparams["embedding_model"]
        sizes = [hparams[k] for k in ("n_heads", "d_ffn", "kernel_size", "dropout")]
        hparams["modules"]["embedding_model"] = SpeakerEmbedder(
            TorchaudioEncoder(model.encoder, *sizes),
            lambda _: model.pooling,
            lambda _: model.projection,
        )
        hparams["embedding_model"] = hparams["modules"]["embedding_model"]
        age = hparams["average_age"]
        hparams["averaged_model"] = RecentAverage(hparams["embedding_model"], age)
    opt_class = functools.partial(hparams["opt_class"], fused=mode.fused)
    brain = SpeakerBrain(hparams["modules"], opt_class, hparams, mode.run_opts(device))
    brain.unreadable = UnreadableRecordings(1, 0.0, hparams["output_folder"])
    brain.total_steps = 10**9
    return brain


def recipe_file(recipe: str) -> str:
    """The absolute path of a recipe."""
    return str(ROOT / "hparams" / f"{recipe}.yaml")


@dataclass(frozen=True)
class Row:
    """A system of the table.

    Arguments
    ---------
    title : str
        Its title in the table.
    make : callable
        Makes the brain from the number of speakers, the mode and the device.
    batch_size : int
        Crops per step.
    crop_seconds : float
        Length of a crop.
    n_speeds : int
        Number of classes per speaker.
    """

    title: str
    make: Callable[[int, Mode, str], sb.Brain]
    batch_size: int
    crop_seconds: float
    n_speeds: int = 1


def our_row(title: str, recipe: str, **options) -> Row:
    """A row of one of our recipes, at its own batch size."""
    values = plain_values(recipe_file(recipe), {})
    return Row(
        title,
        functools.partial(ours, recipe, **options),
        values["batch_size"],
        values["crop_seconds"],
        len(values["speaker_speeds"]),
    )


ROWS = {
    "conformer": our_row("conformer.yaml", "conformer"),
    "mfa_conformer": our_row("mfa_conformer.yaml", "mfa_conformer"),
    "torchaudio": our_row(
        "the same with torchaudio's Conformer", "mfa_conformer", of_torchaudio=True
    ),
    "voxceleb": our_row("voxceleb.yaml", "voxceleb"),
    "ecapa_tdnn": Row(
        "SpeechBrain's ECAPA-TDNN recipe", ecapa, ECAPA_CROPS, ECAPA_SECONDS
    ),
}
