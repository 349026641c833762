"""The recipe as a whole, on a small corpus of real audio files."""

import itertools
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from filelock import FileLock
from safetensors.torch import load_file
from speechbrain import Stage
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.lobes.features import Fbank

import train_speaker
from local_modules.audio import ReadableBatch, SpeechCache, UtteranceReader
from local_modules.command_line import parse_command_line
from local_modules.config import load_hparams
from local_modules.evaluation.backend import Backend
from local_modules.losses import AdditiveAngularMargin
from local_modules.manifest import read_manifest, write_manifest
from local_modules.shards import reading
from local_modules.shards.index import read_index
from local_modules.shards.packing import pack
from local_modules.training import finish
from local_modules.training.checkpoints import WholeCheckpointer
from tests.programs import Program, train, train_and_die, train_told

pytestmark = pytest.mark.usefixtures("no_pictures")  # but for `finished`
ROOT = Path(__file__).parents[1]
SMALL = {
    "corpus": "folder",
    "d_model": 16,
    "n_blocks": 2,
    "n_heads": 2,
    "d_ffn": 16,
    "emb_dim": 16,
    "batch_size": 8,
    "crop_seconds": 0.8,
    "number_of_epochs": 3,
}
SPEECH = ROOT.parent / "shared" / "speech"


def command_line(data, output, *more, **overrides):
    """Arguments of a small run on the CPU, without progress bars."""
    values = {"data_folder": data, "output_folder": output, **SMALL, **overrides}
    pairs = [text for key, value in values.items() for text in (f"--{key}", f"{value}")]
    recipe = str(ROOT / "hparams" / "conformer.yaml")
    return [recipe, *pairs, "--device", "cpu", "--noprogressbar", *more]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def latest_states(folder):
    """The files of the latest checkpoint that hold weights or the optimizer."""
    latest = WholeCheckpointer(folder / "save").find_checkpoint()
    names = ("embedding_model", "averaged_model", "classifier", "optimizer")
    return [
        torch.load(latest.path / f"{name}.ckpt", weights_only=True) for name in names
    ]


def splits_in(manifests):
    """The utterances of a manifest folder."""
    names = ("train", "valid", "test")
    return {name: read_manifest(manifests / f"{name}.csv") for name in names}


def assert_same(one, other):
    """Bit for bit, through all levels."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert one == other


@pytest.fixture(scope="session")
def finished(voices_folder, tmp_path_factory):
    """The folder of a run and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    arguments = command_line(voices_folder, folder, "--ckpt_interval_steps", "1")
    program = Program(train, arguments)
    output = program.output()
    assert program.status == 0, output
    return folder, output


def test_a_run_leaves_what_the_design_promises(finished):
    folder, output = finished
    metrics = metrics_of(folder)
    for split in ("valid", "test"):
        assert metrics[split].keys() == {
            "eer",
            "eer_threshold",
            "min_dcf",
            "n_target",
            "n_nontarget",
        }
        assert 0 <= metrics[split]["eer"] <= 0.5
        assert metrics[split]["n_target"] == metrics[split]["n_nontarget"] == 18
    assert metrics["train"].keys() == {"loss", "accuracy"}
    assert metrics["epochs"] == 3
    assert metrics["n_speakers"] == 6
    assert metrics["train_seconds"] > 0
    for name in ("hyperparams.yaml", "log.txt", "env.log", "train_log.txt"):
        assert (folder / name).stat().st_size > 0
    for name in ("loss", "accuracy", "learning_rate", "eer", "scores", "det"):
        assert (folder / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").iterdir())
    assert len((folder / "train_log.txt").read_text().splitlines()) == 3
    last_screen = output[output.index("\nvalid") :]
    assert f"{100 * metrics['test']['eer']:.2f} %" in last_screen
    assert str(folder / "model") in last_screen
    assert "foreign_class" in last_screen
    assert "No augmentation" not in output  # by default it is none


def test_the_parameters_counted_are_the_embedding_models(finished):
    folder, _ = finished
    state = load_file(folder / "model" / "embedding_model.safetensors")
    # Batch norms keep running statistics, which are no parameters.
    n_numbers = sum(
        tensor.numel()
        for name, tensor in state.items()
        if "running_" not in name and "num_batches" not in name
    )
    assert metrics_of(folder)["n_parameters"] == n_numbers


def test_the_best_epoch_is_the_one_of_the_lowest_valid_eer(finished):
    folder, _ = finished
    metrics = metrics_of(folder)
    eers = [
        float(line.split("valid EER ")[1].split(" %")[0]) / 100
        for line in (folder / "train_log.txt").read_text().splitlines()
    ]
    assert metrics["valid"]["eer"] == pytest.approx(min(eers), abs=1e-4)
    assert eers[metrics["best_epoch"] - 1] == min(eers)


def test_each_epoch_says_how_much_it_has_seen(finished):
    latest = WholeCheckpointer(finished[0] / "save").find_checkpoint()
    epochs = json.loads((latest.path / "history.ckpt").read_text())["epochs"]
    assert [row["train_utterances"] for row in epochs] == [48, 48, 48]


def test_the_epochs_after_the_best_are_reported_too(
    voices_folder, tmp_path, monkeypatch
):
    eers = iter([0.1, 0.2, 0.3, 0.1, 0.5])  # three epochs, valid again, test

    def rising(target, nontarget):
        return next(eers), 0.0

    monkeypatch.setattr("local_modules.metrics.equal_error_rate", rising)
    assert train_speaker.main(command_line(voices_folder, tmp_path / "run")) == 0
    metrics = metrics_of(tmp_path / "run")
    assert (metrics["best_epoch"], metrics["epochs"]) == (1, 3)
    assert (metrics["valid"]["eer"], metrics["test"]["eer"]) == (0.1, 0.5)
    log = (tmp_path / "run" / "train_log.txt").read_text().splitlines()
    told = [(line.split(": ")[0], line.split(" - ")[1].split(",")[0]) for line in log]
    assert told == [(f"epoch {n}", f"valid EER {10 * n}.00 %") for n in (1, 2, 3)]
    checkpoints = WholeCheckpointer(tmp_path / "run" / "save")
    last = checkpoints.find_checkpoint().path / "history.ckpt"
    seconds = [row["seconds"] for row in json.loads(last.read_text())["epochs"]]
    assert 0 < seconds[0] < seconds[1] < seconds[2] == metrics["train_seconds"]
    # The model is the best epoch's, and so is what is said of its training.
    best = checkpoints.find_checkpoint(min_key="eer").path
    weights = load_file(tmp_path / "run/model/embedding_model.safetensors")
    kept = torch.load(best / "averaged_model.ckpt", weights_only=True)
    latest = torch.load(best / "embedding_model.ckpt", weights_only=True)
    for name, weight in weights.items():
        assert torch.equal(weight, kept[f"module.{name}"])
    assert any(not torch.equal(weights[name], latest[name]) for name in weights)
    (row,) = json.loads((best / "history.ckpt").read_text())["epochs"]
    assert metrics["train"] == {
        "loss": row["train_loss"],
        "accuracy": row["train_accuracy"],
    }


@pytest.mark.parametrize("n_saved", [1, 9, 14, 20])
def test_a_killed_run_continues_to_the_same_bits(
    n_saved, finished, voices_folder, tmp_path
):
    """SIGKILL after so many checkpoints (6 steps an epoch, one checkpoint each and one
    at its end; 20 is the very last step), then the same command again."""
    folder = tmp_path / "killed"
    more = ("--ckpt_interval_steps", "1")
    arguments = command_line(voices_folder, folder, *more)
    killed = Program(train_and_die, n_saved, arguments)
    output = killed.output()
    assert killed.status == -signal.SIGKILL, output
    assert not (folder / "metrics.json").exists()
    assert train_speaker.main(arguments) == 0
    assert_same(latest_states(folder), latest_states(finished[0]))
    whole, killed = metrics_of(finished[0]), metrics_of(folder)
    for key in ("valid", "test", "train", "best_epoch", "epochs"):
        assert killed[key] == whole[key]


@pytest.mark.parametrize(
    ("method", "n_calls", "number", "n_workers", "step"),
    [
        ("fit_batch", 6, signal.SIGINT, 0, 6),  # the last of an epoch
        ("fit_batch", 8, signal.SIGTERM, 1, 2),
        ("fit_batch", 18, signal.SIGUSR1, 0, 6),  # the very last
        ("evaluate_batch", 1, signal.SIGHUP, 1, 0),
    ],
)
def test_a_run_told_to_stop_keeps_what_is_done(
    method, n_calls, number, n_workers, step, finished, voices_folder, tmp_path
):
    """By a signal to all of its processes, without checkpoints but those of epochs."""
    folder = tmp_path / "stopped"
    arguments = command_line(voices_folder, folder, num_workers=n_workers)
    stopped = Program(train_told, method, n_calls, number, arguments)
    output = stopped.output(timeout=25)  # not before the data worker gives up
    assert stopped.status == 130, output
    assert output.count("Stopped. The same command continues.") == 1
    latest = WholeCheckpointer(folder / "save").find_checkpoint()
    assert f"step: {step}\n" in (latest.path / "brain.ckpt").read_text()
    assert train_speaker.main(arguments) == 0
    assert_same(latest_states(folder), latest_states(finished[0]))


def test_a_data_worker_changes_no_bit(finished, voices_folder, tmp_path):
    arguments = command_line(voices_folder, tmp_path / "run", num_workers=1)
    assert train_speaker.main(arguments) == 0
    assert_same(latest_states(tmp_path / "run"), latest_states(finished[0]))


def test_another_seed_gives_another_run(finished, voices_folder, tmp_path, monkeypatch):
    """On the way: each epoch has crops of its own, and what scores beyond the cosine
    need is made of `valid` and of training speakers."""
    epochs, fitted = [], []
    set_epoch, fit = UtteranceReader.set_epoch, finish.fit_backend

    def noted_set_epoch(reader, epoch):
        epochs.append(epoch)
        set_epoch(reader, epoch)

    def noted_fit(*parts):
        fitted.extend(parts)
        return fit(*parts)

    monkeypatch.setattr(UtteranceReader, "set_epoch", noted_set_epoch)
    monkeypatch.setattr(finish, "fit_backend", noted_fit)
    arguments = command_line(voices_folder, tmp_path / "run", seed=2)
    assert train_speaker.main(arguments) == 0
    whole = metrics_of(finished[0])
    assert metrics_of(tmp_path / "run")["train"] != whole["train"]
    assert epochs == [1, 2, 3]
    embeddings, seconds, speakers, trials, cohort, cohort_speakers = fitted
    manifests = tmp_path / "run" / "manifests"
    valid = {row.path: row for row in read_manifest(manifests / "valid.csv")}
    train = {row.id: row.speaker for row in read_manifest(manifests / "train.csv")}
    assert embeddings.keys() == valid.keys() == {*trials.enrol, *trials.test}
    assert seconds == {path: row.duration for path, row in valid.items()}
    assert speakers == {path: row.speaker for path, row in valid.items()}
    assert cohort.keys() <= train.keys() and cohort_speakers == train


def test_a_finished_run_is_not_trained_again(finished, voices_folder, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(finished[0], folder)
    before = latest_states(folder)
    assert train_speaker.main(command_line(voices_folder, folder)) == 0
    assert_same(before, latest_states(folder))
    assert metrics_of(folder)["epochs"] == 3


def test_the_time_limit_ends_the_run_with_the_schedules_run_down(
    voices_folder, tmp_path, capsys
):
    arguments = command_line(
        voices_folder,
        tmp_path / "run",
        number_of_epochs=100000,
        train_time_limit_minutes=0.05,
    )
    assert train_speaker.main(arguments) == 0
    metrics = metrics_of(tmp_path / "run")
    assert metrics["train_seconds"] >= 3.0
    assert metrics["epochs"] < 100000
    last = (tmp_path / "run" / "train_log.txt").read_text().splitlines()[-1]
    assert float(last.split("lr ")[1].split(" ")[0]) < 1e-4
    assert "margin 0.65" in last
    # Its time is over: the same command trains no further.
    assert train_speaker.main(arguments) == 0
    assert metrics_of(tmp_path / "run")["epochs"] == metrics["epochs"]


@pytest.mark.parametrize(
    "options",
    [
        ("--precision", "bf16"),
        ("--grad_accumulation_factor", "2"),
        ("--optimizer_step_limit", "4"),
        ("--ckpt_interval_minutes", "1"),
        ("--remove_vector_weight_decay",),
        ("--compile",),
    ],
    ids=" ".join,
)
def test_run_options_of_speechbrain(options, voices_folder, tmp_path, monkeypatch):
    """Each does what SpeechBrain says of it, and nothing of what the others do."""
    brain = train_speaker.SpeakerBrain
    objectives, step = brain.compute_objectives, brain.optimizers_step
    save = WholeCheckpointer.save_checkpoint
    # Without the C++ at the end, which takes a minute to make and is PyTorch's own.
    to_graphs = partial(torch.compile, backend="aot_eager")
    compiled, dtypes, decays, saved = [], set(), [], []

    def noted_compile(*args, **kwargs):
        compiled.extend(
            module for module in args if isinstance(module, torch.nn.Module)
        )
        return to_graphs(*args, **kwargs)

    def noted_objectives(brain, embeddings, batch, stage):
        if stage == Stage.TRAIN:
            dtypes.add(embeddings.dtype)
        return objectives(brain, embeddings, batch, stage)

    def noted_step(brain):
        found = set()
        for group in brain.optimizer.param_groups:
            decay = group["weight_decay"]
            found |= {(parameter.dim() > 1, decay) for parameter in group["params"]}
        decays.append(found)
        step(brain)

    def noted_save(checkpointer, *args, **kwargs):
        saved.append(1)
        return save(checkpointer, *args, **kwargs)

    monkeypatch.setattr(torch, "compile", noted_compile)
    monkeypatch.setattr(brain, "compute_objectives", noted_objectives)
    monkeypatch.setattr(brain, "optimizers_step", noted_step)
    monkeypatch.setattr(WholeCheckpointer, "save_checkpoint", noted_save)
    # Whenever it looks, another minute is over.
    clock = SimpleNamespace(time=partial(next, itertools.count(step=61)))
    monkeypatch.setattr("speechbrain.core.time", clock)
    arguments = command_line(voices_folder, tmp_path / "run", *options)
    assert train_speaker.main(arguments) == 0
    option, n_epochs = options[0], metrics_of(tmp_path / "run")["epochs"]
    assert n_epochs == {"--optimizer_step_limit": 1}.get(option, 3)
    fewer = {"--optimizer_step_limit": 4, "--grad_accumulation_factor": 9}
    assert len(decays) == fewer.get(option, 18)
    assert dtypes == {torch.bfloat16 if option == "--precision" else torch.float32}
    of_vectors = 0.0 if option == "--remove_vector_weight_decay" else 0.2
    assert all(found == {(True, 0.2), (False, of_vectors)} for found in decays)
    n_within = 18 if option == "--ckpt_interval_minutes" else 0
    assert len(saved) == n_epochs + n_within
    assert len(compiled) == (4 if option == "--compile" else 0)  # with the features


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    voices_folder, tmp_path, monkeypatch, capsys
):
    forward = AdditiveAngularMargin.forward
    calls = []

    def fails_after_an_epoch(self, *args):
        calls.append(1)
        return forward(self, *args) * (float("nan") if len(calls) > 6 else 1.0)

    monkeypatch.setattr(AdditiveAngularMargin, "forward", fails_after_an_epoch)
    arguments = command_line(voices_folder, tmp_path / "run")
    assert train_speaker.main(arguments) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("train_speaker.py: ")
    assert "not finite" in line
    assert str(tmp_path / "run" / "save") in line
    # SpeechBrain lets three such steps of an epoch pass.
    assert len(calls) == 6 + 4
    for state in latest_states(tmp_path / "run")[:3]:
        assert all(torch.isfinite(tensor.float()).all() for tensor in state.values())
    monkeypatch.undo()
    assert train_speaker.main(arguments) == 0


@pytest.mark.parametrize(
    ("options", "batch_size", "call"),
    # The fifth batch of an epoch of five is left over: no step comes after it.
    [([], 8, 2), (["--grad_accumulation_factor", "2"], 9, 5)],
)
def test_a_batch_that_is_not_finite_leaves_nothing_behind(
    options, batch_size, call, voices_folder, tmp_path, monkeypatch
):
    """Not in the batch norms either, whose statistics no later batch would heal."""
    features, calls = Fbank.forward, []

    def once_none(self, wav):
        calls.append(1)
        return features(self, wav) * (float("nan") if len(calls) == call else 1.0)

    monkeypatch.setattr(Fbank, "forward", once_none)
    run = tmp_path / "run"
    arguments = command_line(voices_folder, run, *options, batch_size=batch_size)
    assert train_speaker.main(arguments) == 0
    for state in latest_states(run)[:3]:
        assert all(torch.isfinite(tensor.float()).all() for tensor in state.values())
    assert metrics_of(run)["valid"]["eer"] < 0.5


def test_scores_that_are_not_finite_end_the_run_in_one_line(
    voices_folder, tmp_path, monkeypatch, capsys
):
    features, n_crop = Fbank.forward, round(SMALL["crop_seconds"] * 16000)

    def none_of_whole_recordings(self, wav):
        share = 1.0 if wav.shape[1] == n_crop else float("nan")
        return share * features(self, wav)

    monkeypatch.setattr(Fbank, "forward", none_of_whole_recordings)
    assert train_speaker.main(command_line(voices_folder, tmp_path / "run")) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    counted = "train_speaker.py: valid: 12 of 12 embeddings are not finite, the first"
    assert error.startswith(f"{counted} is that of valid/valid")


def test_features_that_are_kept_are_of_the_file():
    """Manifests of one's own may have the same IDs in each split."""
    recipe = str(ROOT / "hparams" / "conformer.yaml")
    hparams = load_hparams(recipe, {"n_speakers": 3})
    brain = train_speaker.SpeakerBrain(
        hparams["modules"], None, hparams, {"device": "cpu"}
    )
    brain.cache, brain.features_text = SpeechCache(0.1), ""
    waves = {"a.wav": torch.randn(8000), "b.wav": torch.randn(8000)}
    found = {}
    for name in ("a.wav", "b.wav", "a.wav"):
        batch = ReadableBatch([{"id": "1", "name": name, "sig": waves[name]}])
        feats, _ = brain.whole_features(batch, Stage.VALID)
        alone = hparams["compute_features"](waves[name].unsqueeze(0))
        assert torch.equal(feats[:, : alone.shape[1]], alone)
        assert found.setdefault(name, feats) is feats


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--remove_vector_weight_decay"], "True, not False"),
        (["--precision", "bf16"], "bf16, not fp32"),
    ],
    ids=["decay", "precision"],
)
def test_a_run_is_continued_with_its_own_options(
    option, told, voices_folder, tmp_path, capsys
):
    run = tmp_path / "run"
    short = command_line(voices_folder, run, number_of_epochs=1)
    assert train_speaker.main([*short, *option]) == 0
    longer = command_line(voices_folder, run, number_of_epochs=2)
    assert train_speaker.main(longer) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"holds a run with {option[0]} {told}" in error
    assert train_speaker.main([*longer, *option]) == 0


def test_two_processes_do_not_train_in_one_folder(
    voices_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("local_modules.training.run.SECONDS_TO_END", 0.1)
    run = tmp_path / "run"
    run.mkdir()
    with FileLock(run / ".lock"):
        assert train_speaker.main(command_line(voices_folder, run)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"train_speaker.py: {run}: another process is training")
    assert not (run / "save").exists()


@pytest.mark.parametrize("key", ["shards", "max_bad_share"])
def test_a_recipe_that_lacks_a_key_is_told(key, voices_folder, tmp_path, capsys):
    """Such as one copied from an earlier version."""
    recipe = tmp_path / "own.yaml"
    text = (ROOT / "hparams" / "conformer.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(f"{key}: ")]
    recipe.write_text("\n".join(lines))
    arguments = command_line(voices_folder, tmp_path / "run")
    assert train_speaker.main([str(recipe), *arguments[1:]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{recipe}: has no key {key}; see hparams/conformer.yaml" in error


def test_the_classifier_knows_the_training_speakers(finished, voices_folder):
    from speechbrain.inference.classifiers import EncoderClassifier

    folder, _ = finished
    model = EncoderClassifier.from_hparams(source=str(folder / "model"))
    files = sorted((voices_folder / "train").glob("*/*.wav"))
    labels = [model.classify_file(str(path))[3][0] for path in files]
    right = sum(
        label == path.parent.name for label, path in zip(labels, files, strict=True)
    )
    assert right / len(files) > 0.5  # three epochs; chance is one in six


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{recipe}", "--emb_dmi", "3"], ["--emb_dmi", "emb_dim"]),
        (["hparams/none.yaml"], ["hparams/none.yaml", "No such file"]),
        (["{recipe}", "--corpus", "voxx"], ["voxx", "demo", "folder"]),
        (["{recipe}", "--precision", "fp8"], ["--precision", "bf16"]),
        (["{recipe}", "--kernel_size", "4", *["{data}"]], ["kernel_size 4"]),
        (
            ["{recipe}", "--corpus", "folder", "--data_folder", "/nowhere"],
            ["/nowhere"],
        ),
        (
            ["{recipe}", "{data}", "--noise_folder", "/nowhere"],
            ["noise_folder /nowhere: does not exist"],
        ),
        (["{recipe}", "--number_of_epochs", "0"], ["--number_of_epochs 0: has to"]),
        (["{recipe}", "--train_time_limit_minutes", "ten"], ["minutes ten: has to"]),
        (["{recipe}", "--lr", "-1"], ["--lr -1: has to be 0 or more"]),
        (["{recipe}", "--speaker_speeds", "[1.0,fast]"], ["--speaker_speeds [1.0, "]),
        (["{recipe}", "--speaker_speeds", "[1,1.1,1.1]"], ["once, 1.0 among them"]),
        (["{recipe}", "--weight_decay", "-1"], ["--weight_decay -1: has to be 0 or"]),
        (["{recipe}", "--num_workers", "-1"], ["--num_workers -1: has to be 0 or"]),
        (["{recipe}", "--seed", "-1"], ["--seed -1: has to be 0 or more"]),
        (["{recipe}", "--crop_seconds", "0.02"], ["--crop_seconds 0.02: has to be"]),
        (["{recipe}", "{data}", "--warmup_share", "1"], ["warmup_share 1 does not"]),
        (["{recipe}", "--batch_size", "1"], ["--batch_size 1: has to be 2 or more"]),
        (["{recipe}", "--frozen_blocks", "2"], ["--frozen_blocks 2: ", "--pretrained"]),
        (
            ["{recipe}", "{data}", "--grad_accumulation_factor", "9"],
            ["--grad_accumulation_factor 9: an epoch has"],
        ),
        (
            ["{recipe}", "{data}", "--compile", "--compile_module_keys", "model"],
            ["--compile_module_keys model: ", "has the modules", "embedding_model"],
        ),
        (["{recipe}", "{data}", "--test_only"], ["--test_only: ", "no checkpoint"]),
        pytest.param(
            ["{recipe}", "--device", "cuda"],
            ["--device cuda: torch sees no GPU"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it has one"),
        ),
        ([], ["param_file"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments, words, voices_folder, tmp_path, capsys
):
    places = {
        "{recipe}": [str(ROOT / "hparams" / "conformer.yaml")],
        "{data}": [
            "--corpus",
            "folder",
            "--data_folder",
            str(voices_folder),
        ],
    }
    output = ["--output_folder", str(tmp_path)] if arguments else []
    argv = [text for word in arguments for text in places.get(word, [word])]
    assert train_speaker.main(argv + output) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_noises_that_nothing_uses_are_told(voices_folder, tmp_path, caplog):
    noises = voices_folder / "train"
    arguments = command_line(voices_folder, tmp_path, "--test_only")
    assert train_speaker.main([*arguments, "--noise_folder", str(noises)]) == 2
    assert "--noise_folder is not used: augment_prob is 0" in caplog.text
    assert "--rir_folder" not in caplog.text


def test_a_run_is_not_continued_with_other_settings(finished, voices_folder, capsys):
    folder, _ = finished
    before = latest_states(folder)
    assert train_speaker.main(command_line(voices_folder, folder, lr=0.5)) == 2
    error = capsys.readouterr().err
    assert "lr 0.0096, not 0.5" in error
    assert "--output_folder" in error
    assert_same(before, latest_states(folder))


def test_a_run_does_not_mix_with_the_programs(voices_folder, capsys):
    before = set(ROOT.iterdir())
    assert train_speaker.main(command_line(voices_folder, ROOT)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train_speaker.py: --output_folder {ROOT}: is where the")
    assert error.count("\n") == 1
    assert set(ROOT.iterdir()) == before


def test_help_tells_of_both_kinds_of_options(capsys):
    with pytest.raises(SystemExit) as stop:
        train_speaker.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "train_speaker.py hparams/conformer.yaml [--key value ...]" in shown
    assert "top-level key of the YAML file is an option" in shown
    assert "--grad_accumulation_factor" in shown


def test_refused_another_corpus_leaves_the_manifests(
    finished, voices_folder, tmp_path, capsys
):
    folder, _ = finished
    manifests = sorted((folder / "manifests").iterdir())
    before = [path.read_bytes() for path in manifests]
    other = tmp_path / "other"
    shutil.copytree(voices_folder / "train", other)
    assert train_speaker.main(command_line(other, folder)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--data_folder {other}: lacks the recordings that this was" in error
    assert sorted((folder / "manifests").iterdir()) == manifests
    assert [path.read_bytes() for path in manifests] == before


def test_a_run_is_not_continued_with_other_steps(finished, voices_folder, capsys):
    """Its schedules would not fit."""
    folder, _ = finished
    before = latest_states(folder)
    more = ("--grad_accumulation_factor", "2")
    assert train_speaker.main(command_line(voices_folder, folder, *more)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "holds a run with --grad_accumulation_factor 1, not 2" in line
    assert_same(before, latest_states(folder))


def test_tested_again_a_run_has_the_same_rates(finished, voices_folder):
    folder, _ = finished
    before = metrics_of(folder)
    (folder / "metrics.json").unlink()
    arguments = command_line(voices_folder, folder, "--test_only")
    assert train_speaker.main(arguments) == 0
    assert metrics_of(folder) == before


def test_a_checkpoint_within_the_first_epoch_is_none_to_test(
    finished, voices_folder, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    for meta in run.glob("save/CKPT*/CKPT.yaml"):
        lines = meta.read_text().splitlines(keepends=True)
        meta.write_text("".join(line for line in lines if not line.startswith("eer:")))
    more = ("--test_only", "--skip_prep", "True")
    assert train_speaker.main(command_line(voices_folder, run, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith("save has no checkpoint of a whole epoch")


def test_a_run_goes_on_with_its_own_speakers(finished, voices_folder, tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(voices_folder, data)
    assert train_speaker.main(command_line(data, run, number_of_epochs=1)) == 0
    before, manifests = metrics_of(run), run / "manifests"
    train = (manifests / "train.csv").read_bytes()
    # The same number of speakers, so that the recipe is the same.
    (data / "train" / "train0").rename(data / "train" / "train9")
    assert train_speaker.main(command_line(data, run, number_of_epochs=1)) == 0
    assert metrics_of(run) == before
    assert (manifests / "train.csv").read_bytes() == train
    (manifests / "train.csv").unlink()
    capsys.readouterr()
    assert train_speaker.main(command_line(data, run, number_of_epochs=1)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        f"train_speaker.py: {run}/manifests/train.csv: has changed since {run} was "
        "begun; choose another --output_folder"
    )
    assert metrics_of(run) == before


def test_a_run_goes_on_where_it_and_its_recordings_have_moved(
    finished, voices_folder, tmp_path
):
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(voices_folder, data)
    assert train_speaker.main(command_line(data, run, number_of_epochs=1)) == 0
    data.rename(tmp_path / "moved")
    run = run.rename(tmp_path / "renamed")
    command = command_line(tmp_path / "moved", f"{run}/", number_of_epochs=2)
    assert train_speaker.main(command) == 0
    assert metrics_of(run)["epochs"] == 2


def test_each_step_has_the_margin_of_its_progress(voices_folder, tmp_path, monkeypatch):
    forward, shares = AdditiveAngularMargin.forward, []

    def noted(self, cosines, targets, margin_share):
        shares.append(margin_share)
        return forward(self, cosines, targets, margin_share)

    monkeypatch.setattr(AdditiveAngularMargin, "forward", noted)
    assert train_speaker.main(command_line(voices_folder, tmp_path / "run")) == 0
    ramp = [min(max((step / 18 - 0.2) / 0.3, 0.0), 1.0) for step in range(18)]
    assert shares == pytest.approx(ramp)


def test_an_earlier_numbering_is_void_and_epochs_share_a_pass(voices_folder, tmp_path):
    (tmp_path / "run" / "save").mkdir(parents=True)
    earlier = CategoricalEncoder()
    earlier.update_from_iterable(f"gone{n}" for n in range(6))
    earlier.save(tmp_path / "run" / "save" / "label_encoder.txt")
    arguments = command_line(voices_folder, tmp_path / "run", epochs_per_pass=2)
    assert train_speaker.main(arguments) == 0
    latest = WholeCheckpointer(tmp_path / "run" / "save").find_checkpoint().path
    rows = json.loads((latest / "history.ckpt").read_text())["epochs"]
    assert [row["train_utterances"] for row in rows] == [24, 24, 24]


@pytest.mark.parametrize("factor", ["1", "3"])
def test_debugging_has_the_whole_schedule(factor, voices_folder, tmp_path):
    """The margin, too: a fault in it would show only after hours."""
    more = ("--debug", "--debug_persistently", "--grad_accumulation_factor", factor)
    run = tmp_path / "run"
    arguments = command_line(voices_folder, run, *more, number_of_epochs=50)
    assert train_speaker.main(arguments) == 0
    last = (run / "train_log.txt").read_text().splitlines()[-1]
    assert last.startswith("epoch 2:") and "margin 0.65" in last


def test_copies_of_a_crop_have_its_label(voices_folder, tmp_path):
    """SpeechBrain's recipe for VoxCeleb trains on a batch and on copies of it."""
    recipe = tmp_path / "own.yaml"
    text = (ROOT / "hparams" / "conformer.yaml").read_text()
    line = "    augment_prob: !ref <augment_prob>\n"
    assert text.count(line) == 1
    copies = "    concat_original: True\n    parallel_augment: True\n"
    recipe.write_text(text.replace(line, line + copies))
    values = {"augment_prob": 1.0, "number_of_epochs": 1}
    arguments = command_line(voices_folder, tmp_path / "run", **values)
    assert train_speaker.main([str(recipe), *arguments[1:]]) == 0


def test_two_names_for_one_class_are_told(voices_folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(voices_folder, data)
    (data / "train/train1").rename(data / "train/train0@0.9")
    speeds = {"speaker_speeds": "[1.0,0.9]"}
    arguments = command_line(data, tmp_path / "run", **speeds)
    assert train_speaker.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "two training speakers' names differ only by @ and a speed" in error


def test_debugging_leaves_a_run_alone(finished, voices_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = metrics_of(finished[0])
    assert train_speaker.main(command_line(voices_folder, finished[0], "--debug")) == 0
    assert metrics_of(finished[0]) == before
    (folder,) = tmp_path.glob("debug-*")
    assert metrics_of(folder)["epochs"] == 2


def test_the_cohort_knows_who_speaks_in_each_part_of_a_file(finished, tmp_path):
    """A call, say: of one file, both halves are in the manifest."""
    manifests = tmp_path / "manifests"
    shutil.copytree(finished[0] / "manifests", manifests)
    rows = read_manifest(manifests / "train.csv")
    one, other = rows[0], next(row for row in rows if row.speaker != rows[0].speaker)
    middle = one.stop // 2
    halves = [
        replace(one, stop=middle),
        replace(other, path=one.path, start=middle, stop=one.stop),
    ]
    kept = [row for row in rows if row.id not in {one.id, other.id}]
    write_manifest(manifests / "train.csv", halves + kept)
    values = {"output_folder": str(tmp_path), "n_speakers": 6, "data_folder": "/data"}
    (tmp_path / "save").mkdir()
    recipe = str(ROOT / "hparams" / "conformer.yaml")
    datasets, *_ = train_speaker.dataio_prep(
        load_hparams(recipe, values), splits_in(manifests), SpeechCache(0.0)
    )
    with datasets["cohort"].output_keys_as(["id", "name"]):
        items = list(datasets["cohort"])
    assert {one.id, other.id} <= {item["id"] for item in items}
    assert all(item["name"] == item["id"] for item in items)


def test_the_seed_decides_on_the_crops_and_their_order(
    finished, voices_folder, tmp_path
):
    splits = splits_in(finished[0] / "manifests")
    values = {**SMALL, "data_folder": str(voices_folder), "n_speakers": 6}
    values["output_folder"] = str(tmp_path)
    (tmp_path / "save").mkdir()
    recipe = str(ROOT / "hparams" / "conformer.yaml")
    orders, crops = [], []
    for seed in (1, 1, 2):
        hparams = load_hparams(recipe, values | {"seed": seed})
        datasets, _, sampler = train_speaker.dataio_prep(
            hparams, splits, SpeechCache(0.0)
        )
        orders.append(list(sampler))
        crops.append(torch.stack([datasets["train"][n]["sig"] for n in range(8)]))
    assert orders[0] == orders[1] != orders[2]
    assert torch.equal(crops[0], crops[1])
    assert (crops[0] != crops[2]).any(dim=1).all()


def test_a_recording_that_breaks_later_is_named_and_skipped(
    voices_folder, tmp_path, capsys
):
    data = tmp_path / "data"
    shutil.copytree(voices_folder, data)
    arguments = command_line(data, tmp_path / "run", number_of_epochs=1)
    assert train_speaker.main(arguments) == 0
    in_test, in_train = data / "test/test0/0.wav", data / "train/train0/0.wav"
    for broken in (in_test, in_train):
        size, times = broken.stat().st_size, broken.stat()
        broken.write_bytes(b"\0" * size)
        os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    values = {"number_of_epochs": 2, "skip_prep": True, "valid_batch_size": 1}
    arguments = command_line(data, tmp_path / "run", max_bad_share=0.05, **values)
    assert train_speaker.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        "train_speaker.py: test: 1 of 12 recordings can't be decoded, the first is "
        "test/test0/0.wav; that is over max_bad_share 5.00%: repair them or raise "
        "max_bad_share, and the same command continues"
    )
    arguments = command_line(data, tmp_path / "run", max_bad_share=0.1, **values)
    assert train_speaker.main(arguments) == 0
    assert metrics_of(tmp_path / "run")["test"]["n_target"] == 15
    log = (tmp_path / "run" / "log.txt").read_text()
    assert str(in_train) in log and "test: 1 of 12 recordings can't be decoded" in log
    # Batch norm has nothing to compare what is left of a batch of two with.
    values |= {"batch_size": 2, "number_of_epochs": 1}
    arguments = command_line(data, tmp_path / "small", max_bad_share=0.1, **values)
    arguments += ["--manifest_folder", str(tmp_path / "run" / "manifests")]
    assert train_speaker.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train0/0: only 1 recording(s) of a batch can be decoded" in error


@pytest.mark.skipif(not SPEECH.is_dir(), reason=f"no recordings in {SPEECH}")
def test_real_speech_with_its_trial_list(tmp_path):
    more = ("--debug", "--debug_persistently")
    arguments = command_line(SPEECH, tmp_path / "run", *more, batch_size=32)
    assert train_speaker.main(arguments) == 0
    assert metrics_of(tmp_path / "run")["n_speakers"] == 411


class TestStartingFromATrainedModel:
    def test_frozen_and_held_near(
        self, finished, voices_folder, tmp_path, capsys, monkeypatch
    ):
        """On the same speakers: what is frozen keeps its bits, and its dropout and
        batch norms still, the rest is trained but stays near what it was, nearer than
        without distillation."""
        modes = set()
        step = train_speaker.SpeakerBrain.optimizers_step

        def watched(brain):
            modes.update(module.training for module in brain.frozen)
            step(brain)

        monkeypatch.setattr(train_speaker.SpeakerBrain, "optimizers_step", watched)
        folder, _ = finished
        old = load_file(folder / "model/embedding_model.safetensors")
        drifts = []
        for name, weight in (("held", 300.0), ("free", 0.0)):
            run = tmp_path / name
            arguments = command_line(
                voices_folder,
                run,
                pretrained=folder / "model",
                frozen_blocks=1,
                distillation=weight,
                number_of_epochs=2,
                lr=0.03,
                margin_ramp_start=0.0,
                margin_ramp_end=0.0,
                angular_margin=0.5,
            )
            assert train_speaker.main(arguments) == 0
            new = load_file(run / "model/embedding_model.safetensors")
            changed = {key for key in new if not torch.equal(new[key], old[key])}
            frozen = ("encoder.subsampling.", "encoder.blocks.0.")
            assert not [key for key in changed if key.startswith(frozen)]
            for part in ("encoder.blocks.1.", "pooling.", "projection."):
                assert [key for key in changed if key.startswith(part)], part
            metrics = metrics_of(run)
            assert metrics["drift"]["eer_old"] == metrics_of(folder)["valid"]["eer"]
            drifts.append(metrics["drift"])
        assert modes == {False}
        held, free = drifts
        assert held["cosine"] > free["cosine"] + 0.03, drifts
        shown = capsys.readouterr().out
        assert f"drift  cosine {held['cosine']:.3f} to the old embeddings" in shown

    def test_without_a_step_it_is_the_old_model(
        self, finished, voices_folder, tmp_path
    ):
        folder, _ = finished
        arguments = command_line(
            voices_folder, tmp_path, pretrained=folder / "model", lr=0.0, weight_decay=0
        )
        assert train_speaker.main([*arguments, "--optimizer_step_limit", "1"]) == 0
        old, new = (
            load_file(run / "model/embedding_model.safetensors")
            for run in (folder, tmp_path)
        )
        # Batch norms count a batch without learning from it.
        learnt = [key for key in old if "running_" not in key and "batches" not in key]
        assert all(torch.equal(old[key], new[key]) for key in learnt)
        assert metrics_of(tmp_path)["drift"]["cosine"] > 0.99

    def test_another_encoder_is_one_line(
        self, finished, voices_folder, tmp_path, capsys
    ):
        folder, _ = finished
        arguments = command_line(
            voices_folder, tmp_path, pretrained=folder / "model", emb_dim=8
        )
        assert train_speaker.main(arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert "--pretrained" in line and "emb_dim 16, the recipe 8" in line
        assert not (tmp_path / "manifests").exists()  # told before preparing


class TestSpeakerSpeeds:
    """Every speaker at three speeds is three classes, and one person."""

    SPEEDS = [1.0, 0.9, 1.1]

    @pytest.fixture(scope="class")
    def settings(self, finished):
        return {
            "speaker_speeds": self.SPEEDS,
            "manifest_folder": finished[0] / "manifests",
            "skip_prep": True,
            "number_of_epochs": 1,
        }

    def test_classes_people_and_a_killed_run(self, voices_folder, settings, tmp_path):
        more = ("--ckpt_interval_steps", "1")
        whole, killed = (
            command_line(voices_folder, tmp_path / name, *more, **settings)
            for name in ("whole", "killed")
        )
        assert train_speaker.main(whole) == 0
        program = Program(train_and_die, 4, killed)
        output = program.output()
        assert program.status == -signal.SIGKILL, output
        assert train_speaker.main(killed) == 0
        assert_same(*(latest_states(tmp_path / name) for name in ("whole", "killed")))

        model = tmp_path / "whole" / "model"
        encoder = CategoricalEncoder()
        encoder.load(model / "label_encoder.txt")
        people = [f"train{n}" for n in range(6)]
        copies = [f"{name}@{speed}" for speed in (0.9, 1.1) for name in people]
        assert [*encoder.lab2ind] == people + copies
        assert load_file(model / "classifier.safetensors")["weight"].shape == (18, 16)
        assert len(Backend.load(model).cohort) == 6
        assert metrics_of(tmp_path / "whole")["n_speakers"] == 6

    def test_only_training_is_played_at_them(self, voices_folder, settings, tmp_path):
        values = {"data_folder": str(voices_folder), "output_folder": str(tmp_path)}
        values |= {**settings, "n_speakers": 18, "crop_seconds": None}
        values["manifest_folder"] = str(settings["manifest_folder"])
        splits = splits_in(settings["manifest_folder"])
        recipe = str(ROOT / "hparams" / "conformer.yaml")
        (tmp_path / "save").mkdir()
        datasets, reader, _ = train_speaker.dataio_prep(
            load_hparams(recipe, values), splits, SpeechCache(1.0)
        )
        heard = set()
        for epoch in (1, 2, 3):
            reader.set_epoch(epoch)
            for split in ("valid", "test", "cohort"):
                item = datasets[split][0]
                path = datasets[split].data[item["id"]]["wav"]
                wave, _ = soundfile.read(path, dtype="float32")
                assert item["sig"].numpy() == pytest.approx(wave, abs=1e-7)
            item = datasets["train"][0]
            label = item["spk_id_encoded"].item()
            duration = datasets["train"].data[item["id"]]["duration"]
            speed = self.SPEEDS[label // 6]
            assert len(item["sig"]) / 16000 == pytest.approx(duration / speed, abs=1e-3)
            heard.add((label % 6, speed))
        assert heard == {(0, speed) for speed in self.SPEEDS}


class TestShards:
    @pytest.fixture(scope="class")
    def shards(self, finished, voices_folder, tmp_path_factory):
        folder = tmp_path_factory.mktemp("shards")
        manifests = [
            finished[0] / "manifests" / f"{split}.csv"
            for split in ("train", "valid", "test")
        ]
        for manifest in manifests:
            pack(manifest, voices_folder, folder, per_shard=10)
        return folder

    def test_a_killed_run_continues_to_the_same_bits(
        self, shards, finished, voices_folder, tmp_path
    ):
        """From a pipe, the recordings themselves being elsewhere; one of each run's
        checkpoints after each of 6 steps. With noise and room responses from folders,
        which need not be any."""
        more = ("--ckpt_interval_steps", "1", "--skip_prep", "True")
        values = {
            "shards": f"pipe:cat {shards}/{{}}",
            "shard_cache": tmp_path / "cache",
            "open_shards": 2,
            "manifest_folder": finished[0] / "manifests",
            "number_of_epochs": 1,
            "augment_prob": 1.0,
            "noise_folder": voices_folder / "valid",
            "rir_folder": voices_folder / "test",
        }
        whole, killed = (
            command_line("/nowhere", tmp_path / name, *more, **values)
            for name in ("whole", "killed")
        )
        assert train_speaker.main(whole) == 0
        program = Program(train_and_die, 3, killed)
        output = program.output()
        assert program.status == -signal.SIGKILL, output
        assert train_speaker.main(killed) == 0
        assert_same(*(latest_states(tmp_path / name) for name in ("whole", "killed")))
        one, other = (metrics_of(tmp_path / name) for name in ("whole", "killed"))
        for key in ("valid", "test", "train"):
            assert one[key] == other[key]

    def test_too_many_corrupt_recordings_end_the_run(
        self, shards, voices_folder, tmp_path, capsys
    ):
        damaged = tmp_path / "shards"
        shutil.copytree(shards, damaged)
        _, (shard, *_) = read_index(damaged / "train.json", "index")
        content = bytearray((damaged / shard.name).read_bytes())
        broken = list(shard.members)[:2]
        for utt_id in broken:
            content[shard.members[utt_id].offset + 500] ^= 1
        (damaged / shard.name).write_bytes(content)
        runs = [
            command_line(
                voices_folder,
                tmp_path / "run",
                "--optimizer_step_limit",
                "6",
                shards=damaged,
                max_bad_share=share,
            )
            for share in (0.03, 0.05)
        ]
        assert train_speaker.main(runs[0]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "2 of 48" in line and any(utt_id in line for utt_id in broken)
        assert train_speaker.main(runs[1]) == 0
        log = (tmp_path / "run" / "log.txt").read_text()
        assert all(f"{utt_id}.wav: skipped" in log for utt_id in broken)

    def test_a_shard_that_never_comes_is_one_line(
        self, shards, voices_folder, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(reading, "WAITS", ())
        arguments = command_line(
            voices_folder,
            tmp_path / "run",
            shards=f"pipe:case {{}} in *.tar) exit 3;; esac; cat {shards}/{{}}",
            shard_cache=tmp_path / "cache",
            num_workers=1,
        )
        assert train_speaker.main(arguments) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("train_speaker.py: --shards pipe:case")
        assert "cannot be fetched" in line and "exit status 3" in line


def test_trainings_share_the_features_of_validation(
    voices_folder, tmp_path, monkeypatch
):
    """Once for each kind of features, and with the same result as alone."""
    batches = []
    compute = Fbank.forward

    def count(fbank, wavs):
        if not torch.is_grad_enabled():
            batches.append(fbank.compute_fbanks.n_mels)
        return compute(fbank, wavs)

    monkeypatch.setattr(Fbank, "forward", count)

    def train(name, cache=None, **own):
        arguments = command_line(voices_folder, tmp_path / name, **own)
        recipe, run_opts, values = parse_command_line(arguments)
        batches.clear()
        metrics = train_speaker.train(recipe, run_opts, values, cache, test=False)
        return metrics["valid"], batches[:]

    cache = SpeechCache(1.0)
    first, computed = train("first", cache)
    assert computed == [80]  # the 12 utterances of three epochs in one batch
    assert train("second", cache) == (first, [])
    assert train("alone") == (first, [80])
    assert train("other_bands", cache, n_mels=40)[1] == [40]
    assert len(train("no_room", SpeechCache(0.0))[1]) == 3
