"""Training on several processes against one process with the same global batch."""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

import train_speaker
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.training.checkpoints import WholeCheckpointer
from tests.programs import Program

ROOT = Path(__file__).parents[1]
BATCH = 8
N_STEPS = 6  # of an epoch


def torchrun(n_ranks, arguments, folder, on_rank, *more):
    """What torchrun does, down to reading its options, but for a fork in place of a new
    Python for the launcher and for each rank, which would take longer than the
    training. Each rank runs `on_rank(arguments, folder, *more)`.

    Returns
    -------
    tuple of int and str
        The exit status, and what was printed.
    """
    arguments = [*arguments, "--distributed_backend", "gloo"]
    # A second attempt may else find the addresses of the first
    # (github.com/pytorch/pytorch/issues/135712).
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    launcher = Program(
        launch, n_ranks, on_rank, arguments, folder, *more, environment=environment
    )
    output = launcher.output(timeout=500)
    return launcher.status, output


def launch(n_ranks, on_rank, arguments, folder, *more):
    options = ["--nproc_per_node", f"{n_ranks}", "--max-restarts", "1"]
    options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    options += ["--rdzv-id", f"{folder}", "train_speaker.py"]
    config, _, _ = config_from_args(parse_args(options))
    config.start_method = "fork"
    elastic_launch(config, on_rank)(arguments, folder, *more)
    return 0


DISTURBANCES = {
    "a rank is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "the plug is pulled": lambda: os.killpg(0, signal.SIGKILL),  # the launcher's too
    "a rank is told to stop": lambda: signal.raise_signal(signal.SIGTERM),
}


def train_disturbed(arguments, folder, disturbances=()):
    """In each attempt something happens to rank 1 after so many checkpoints. Notes who
    is embedded outside of training."""
    attempt, rank = (
        int(os.environ[name]) for name in ("TORCHELASTIC_RESTART_COUNT", "RANK")
    )
    n_left, what = [*disturbances, (0, None), (0, None)][attempt]
    save = WholeCheckpointer.save_checkpoint

    def save_and_disturb(self, *args, **kwargs):
        nonlocal n_left
        checkpoint = save(self, *args, **kwargs)
        n_left -= 1
        if n_left == 0 and rank == 1:
            DISTURBANCES[what]()
        return checkpoint

    class Noting(train_speaker.SpeakerBrain):
        def compute_objectives(self, embeddings, batch, stage):
            if stage.name != "TRAIN":
                with open(folder / f"embedded.{rank}", "a") as file:
                    file.writelines(f"{stage.name} {name}\n" for name in batch.name)
            return super().compute_objectives(embeddings, batch, stage)

    WholeCheckpointer.save_checkpoint = save_and_disturb
    train_speaker.SpeakerBrain = Noting
    sys.exit(train_speaker.main(arguments))


def train_keeping(arguments, folder):
    """Keeps what a rank has after each epoch."""
    n_seen = []

    class Keeping(train_speaker.SpeakerBrain):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            super().on_stage_end(stage, stage_loss, epoch)
            if stage.name == "TRAIN":
                n_seen.append(self.hparams.history.seen)
            elif stage.name == "VALID":
                epochs = self.hparams.history.epochs
                state = {
                    "weights": self.modules.state_dict(),
                    "n_seen": n_seen,
                    "accuracy": epochs[-1]["train_accuracy"],
                    "epochs": len(epochs),
                }
                torch.save(state, folder / f"{os.environ['RANK']}.pt")

    train_speaker.SpeakerBrain = Keeping
    sys.exit(train_speaker.main(arguments))


@pytest.fixture(scope="module")
def data(voices_folder, tmp_path_factory):
    """Voices of which no number of ranks gets equal shares."""
    folder = tmp_path_factory.mktemp("data") / "voices"
    shutil.copytree(voices_folder, folder)
    (folder / "valid" / "valid0" / "0.wav").unlink()
    return folder


@pytest.fixture(scope="module")
def command_line(data, tmp_path_factory):
    """Arguments by output folder, batch size and what to change in the recipe's text.
    The optimizer is a plain one: Adam's first steps are as long for a gradient that
    rounding makes as for any other. Nothing is dropped, for each rank draws its own."""
    text = (ROOT / "hparams" / "conformer.yaml").read_text()
    sgd = "!name:torch.optim.SGD\n    momentum: 0.9\n"
    text = replaced(text, "!name:torch.optim.AdamW\n    fused: True\n", sgd)
    values = {
        "corpus": "folder",
        "data_folder": data,
        "d_model": 16,
        "n_blocks": 1,
        "n_heads": 2,
        "d_ffn": 16,
        "emb_dim": 16,
        "crop_seconds": 0.8,
        "number_of_epochs": 2,
        "lr": 0.02,
        "dropout": 0.0,
    }

    def arguments(output, batch_size, *changes, **more):
        recipe = tmp_path_factory.mktemp("recipe") / "sgd.yaml"
        recipe.write_text(replaced(text, *changes) if changes else text)
        pairs = {**values, "output_folder": output, "batch_size": batch_size, **more}
        return [
            str(recipe),
            *(text for key in pairs for text in (f"--{key}", f"{pairs[key]}")),
            *("--device", "cpu", "--noprogressbar", "--ckpt_interval_steps", "1"),
        ]

    return arguments


def replaced(text, old, new):
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.fixture(scope="module")
def alone(command_line, tmp_path_factory):
    """The folder of a run on one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert train_speaker.main(command_line(folder, BATCH)) == 0
    return folder


def assert_same_result(folder, other):
    """Epoch by epoch, to what the order of summation leaves; learning rate and margin
    to the bit."""
    rows, others = (
        json.loads((latest(f) / "history.ckpt").read_text())["epochs"]
        for f in (folder, other)
    )
    exact = {"epoch", "train_accuracy", "train_utterances", "learning_rate", "margin"}
    for row, other_row in zip(rows, others, strict=True):
        for key in row.keys() - {"seconds"}:
            tolerance = 0.0 if key in exact else 1e-3
            assert row[key] == pytest.approx(other_row[key], abs=tolerance), key
    metrics, other_metrics = (
        json.loads((f / "metrics.json").read_text()) for f in (folder, other)
    )
    for split in ("valid", "test"):
        assert metrics[split] == pytest.approx(other_metrics[split], abs=1e-4)
    for name in ("embedding_model", "classifier"):
        weights, other_weights = (
            load_file(f / "model" / f"{name}.safetensors") for f in (folder, other)
        )
        assert weights.keys() == other_weights.keys()
        for key, weight in weights.items():
            torch.testing.assert_close(
                weight, other_weights[key], atol=1e-3, rtol=1e-3, msg=key
            )


def latest(folder):
    return WholeCheckpointer(folder / "save").find_checkpoint().path


def test_killed_and_killed_again_it_ends_as_one_process_does(
    alone, command_line, tmp_path
):
    """Two ranks. The launcher starts both again after the kill of one, in the first
    epoch; in the second the plug is pulled. The same command goes on, both stop when
    one is told to, and are started again."""
    folder = tmp_path / "run"
    arguments = command_line(folder, BATCH // 2)
    kills = [(3, "a rank is killed"), (N_STEPS + 1, "the plug is pulled")]
    status, output = torchrun(2, arguments, tmp_path, train_disturbed, kills)
    assert status == -signal.SIGKILL, output
    assert not (folder / "metrics.json").exists()
    stop = [(2, "a rank is told to stop")]
    status, output = torchrun(2, arguments, tmp_path, train_disturbed, stop)
    assert output.count("Stopped. The same command continues.") == 1, output
    assert status == 0, output
    assert_same_result(folder, alone)


def test_two_ranks_stop_together(command_line, tmp_path):
    """By the clock, which is not the same in both."""
    limit = {"number_of_epochs": 1000, "train_time_limit_minutes": 0.1}
    arguments = command_line(tmp_path / "run", BATCH, **limit)
    status, output = torchrun(2, arguments, tmp_path, train_keeping)
    assert status == 0, output
    first, second = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    # Six speakers' eight utterances, shared; the last epoch may have been cut short.
    assert set(first["n_seen"][:-1]) == {48} and first["n_seen"][-1] % (2 * BATCH) == 0
    weights, others = first.pop("weights"), second.pop("weights")
    assert first == second and weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["epochs"] == first["epochs"] > 1


def test_four_ranks_with_a_part_of_the_speakers_each_train_as_one(
    alone, command_line, data, tmp_path
):
    """One is killed on the way. Each utterance is embedded once, those of `valid` once
    after each of two epochs and once at the end."""
    folder = tmp_path / "run"
    whole = "speechbrain.lobes.models.ECAPA_TDNN.Classifier\n"
    split = (
        "local_modules.class_parallel.SplitClassifier\n"
        "    angular_scale: !ref <angular_scale>\n"
    )
    arguments = command_line(folder, BATCH // 4, whole, split)
    kill = [(N_STEPS + 3, "a rank is killed")]
    status, output = torchrun(4, arguments, tmp_path, train_disturbed, kill)
    assert status == 0, output
    assert_same_result(folder, alone)
    embedded = [
        (tmp_path / f"embedded.{rank}").read_text().splitlines() for rank in range(4)
    ]
    counts = Counter(line for lines in embedded for line in lines)
    assert {(line[:5], count) for line, count in counts.items()} == {
        ("VALID", 2),
        ("TEST ", 1),
    }
    for part, n in (("VALID ", 22), ("TEST valid", 11), ("TEST test", 12)):
        shares = [sum(line.startswith(part) for line in lines) for lines in embedded]
        assert sum(shares) == n and max(shares) - min(shares) <= n // 11, shares
    recording = data / "train" / "train0" / "0.wav"
    checked, own, other = (
        SpeakerModel(str(f / "model"), trust=trust).classifier
        for f, trust in ((folder, False), (folder, True), (alone, False))
    )
    cosines = [m.classify_file(str(recording))[0] for m in (checked, own, other)]
    assert cosines[0].shape[-1] == 6 and torch.equal(*cosines[:2])
    torch.testing.assert_close(*cosines[1:], atol=1e-3, rtol=1e-3)
