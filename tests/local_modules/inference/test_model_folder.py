"""The model folder, loaded as a stranger would load it."""

import ast
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.speaker import SpeakerRecognition
from torch.nn import functional as F

import local_modules
from local_modules.config import load_hparams, resolved_text
from local_modules.errors import InputError
from local_modules.evaluation.backend import Backend
from local_modules.evaluation.calibration import Calibration
from local_modules.inference import model_folder
from local_modules.inference.model_folder import check_parts, write_model_folder

ROOT = Path(__file__).parents[3]
TINY = {"d_model": 16, "n_blocks": 1, "n_heads": 2, "d_ffn": 16}
LABELS = ["zoe", "ann", "bob"]
FILES = {
    "README.md",
    "backend.safetensors",
    "calibration.json",
    "classifier.safetensors",
    "custom.py",
    "embedding_model.safetensors",
    "hyperparams.yaml",
    "label_encoder.txt",
    "mean_var_norm_emb.safetensors",
    "metrics.json",
}
# The longest is no multiple of the hop of 160 samples, nor are the others.
LENGTHS = (16007, 12345, 9999)

# Runs where nothing of this project can be imported.
STRANGER = """
import importlib.util, sys
import soundfile, torch
from speechbrain.inference.interfaces import foreign_class

assert importlib.util.find_spec("local_modules") is None
job = torch.load("job.pt")
wavs = job["wavs"]
lens = torch.tensor([len(wav) for wav in wavs]) / len(wavs[0])
padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
results = {}
for name, source, savedir in job["models"]:
    verifier = foreign_class(
        source=source, pymodule_file="custom.py", classname="SpeakerVerifier",
        savedir=savedir, run_opts={"device": "cpu"},
    )
    a, b, c = (wav.unsqueeze(0) for wav in wavs)
    results[name] = {
        "alone": torch.cat([verifier.encode_batch(wav) for wav in (a, b, c)]),
        "padded": verifier.encode_batch(padded, lens),
        "batch": verifier.verify_batch(
            padded[[0, 0]], padded[1:], lens[[0, 0]], lens[1:]
        ),
        "files": [verifier.verify_files("a.wav", other) for other in job["files"]],
        "explicit": [
            verifier.verify_batch(a, b, threshold=threshold)[1].item()
            for threshold in (-2.0, 0.0, 2.0)
        ],
        "explicit_files": [
            verifier.verify_files("a.wav", "b.wav", threshold=threshold)[1].item()
            for threshold in (-2.0, 2.0)
        ],
    }
torch.save(results, "results.pt")
"""


def made(system="conformer", **overrides):
    """A system with random weights and statistics, and the text it comes from."""
    overrides = {
        "n_speakers": 3,
        "emb_dim": 8,
        "output_folder": "/absolute",
    } | overrides
    if system == "conformer":
        overrides = TINY | overrides
    path = str(ROOT / "hparams" / f"{system}.yaml")
    hparams = load_hparams(path, overrides)
    model = hparams["embedding_model"].eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    hparams["label_encoder"].update_from_iterable(LABELS)
    return hparams, resolved_text(path, overrides)


@torch.no_grad()
def embed(hparams, wav):
    """Embedding of one utterance, [emb_dim], by the recipe's own parts."""
    ones = torch.ones(1)
    feats = hparams["compute_features"](wav.unsqueeze(0))
    feats = hparams["mean_var_norm"](feats, ones)
    return hparams["embedding_model"](feats, ones)[0, 0]


def metrics_with(threshold):
    valid = {"eer": 0.1234, "eer_threshold": threshold, "min_dcf": 0.4321}
    test = {"eer": 0.0567, "eer_threshold": threshold - 9, "min_dcf": 0.4321}
    return {
        "valid": {"n_target": 321, "n_nontarget": 654, **valid},
        "test": {"n_target": 222, "n_nontarget": 333, **test},
        "train": {"loss": 1.5, "accuracy": 0.75},
        "best_epoch": 2,
        "epochs": 7,
        "train_seconds": 90.0,
        "n_speakers": 3,
        "n_parameters": 12345,
    }


@pytest.fixture(scope="module")
def wavs():
    """Tones of another pitch each, in noise."""
    generator = torch.Generator().manual_seed(0)
    return [
        0.3 * torch.sin(torch.arange(n) * pitch)
        + 0.1 * torch.randn(n, generator=generator)
        for n, pitch in zip(LENGTHS, (0.03, 0.1, 0.5), strict=True)
    ]


class Exported:
    """A system, its folder, and what it should say of `wavs`."""

    def __init__(self, folder, wavs, system="conformer", **overrides):
        torch.manual_seed(1)
        self.folder = folder
        self.hparams, self.text = made(system, **overrides)
        self.embeddings = torch.stack([embed(self.hparams, wav) for wav in wavs])
        # Each utterance is the very image of one training speaker.
        self.hparams["classifier"].weight.data = self.embeddings.clone()
        a, *others = self.embeddings
        self.scores = torch.stack([F.cosine_similarity(a, b, dim=0) for b in others])
        # One of the two trials is a target, whatever the weights are.
        self.threshold = self.scores.mean().item()
        self.decisions = (self.scores > self.threshold).tolist()
        self.mean = torch.linspace(-1, 1, self.embeddings.shape[1])
        self.metrics = metrics_with(self.threshold)
        self.write(folder)

    def write(self, folder):
        cohort = F.normalize(torch.eye(len(self.mean)) - self.mean, dim=-1)
        backend = Backend(
            self.mean, cohort, calibration=Calibration({"AS-norm": 2.0}, -1.0)
        )
        write_model_folder(folder, self.hparams, self.text, backend, self.metrics)


@pytest.fixture(scope="module")
def conformer(tmp_path_factory, wavs):
    return Exported(tmp_path_factory.mktemp("run") / "model", wavs)


@pytest.fixture(scope="module")
def ecapa(tmp_path_factory, wavs):
    return Exported(tmp_path_factory.mktemp("ecapa") / "model", wavs, "ecapa_tdnn")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, wavs, conformer, ecapa):
    """What a process elsewhere found in the moved and renamed folders."""
    home = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(conformer.folder, home / "my model")
    shutil.copytree(ecapa.folder, home / "other")
    for name, wav in zip(("a.wav", "b.wav", "c.wav"), wavs, strict=True):
        soundfile.write(home / name, wav.numpy(), 16000, subtype="FLOAT")
    models = [  # one after the other in one process
        ("ecapa", "other", None),
        ("conformer", str(home / "my model"), None),
        ("kept", str(home / "my model"), str(home / "kept")),
    ]
    job = {"models": models, "wavs": wavs, "files": ["b.wav", str(home / "c.wav")]}
    torch.save(job, home / "job.pt")
    (home / "stranger.py").write_text(STRANGER)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "stranger.py"],
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(home / "results.pt")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class TestWhereTheProjectIsNot:
    @pytest.mark.parametrize("name", ["conformer", "kept"])
    def test_embeddings_are_the_models(self, stranger, conformer, name):
        found = stranger[name]
        assert found["alone"].shape == (3, 1, 8)
        close(found["alone"].squeeze(1), conformer.embeddings)
        close(found["padded"].squeeze(1), conformer.embeddings)

    def test_ecapa_too(self, stranger, ecapa):
        # Its convolutions see the padding, so only alone are they the same.
        close(stranger["ecapa"]["alone"].squeeze(1), ecapa.embeddings)

    @pytest.mark.parametrize("name", ["conformer", "kept"])
    def test_stored_threshold_decides(self, stranger, conformer, name):
        scores, decisions = stranger[name]["batch"]
        close(scores.flatten(), conformer.scores)
        assert decisions.flatten().tolist() == conformer.decisions
        assert sorted(conformer.decisions) == [False, True]

    @pytest.mark.parametrize("name", ["conformer", "kept", "ecapa"])
    def test_files(self, stranger, conformer, ecapa, name):
        exported = ecapa if name == "ecapa" else conformer
        scores, decisions = zip(*stranger[name]["files"], strict=True)
        close(torch.stack(scores).flatten(), exported.scores)
        assert [d.item() for d in decisions] == exported.decisions

    @pytest.mark.parametrize("name", ["conformer", "ecapa"])
    def test_explicit_threshold(self, stranger, conformer, ecapa, name):
        score = {"conformer": conformer, "ecapa": ecapa}[name].scores[0]
        assert stranger[name]["explicit"] == [True, score.item() > 0, False]
        assert stranger[name]["explicit_files"] == [True, False]


class TestWithSpeechBrainsOwnClasses:
    @pytest.fixture(scope="class")
    def classifier(self, conformer):
        return EncoderClassifier.from_hparams(
            source=str(conformer.folder), run_opts={"device": "cpu"}
        )

    def test_encode(self, classifier, conformer, wavs):
        for wav, expected in zip(wavs, conformer.embeddings, strict=True):
            close(classifier.encode_batch(wav)[0, 0], expected)

    def test_normalize_takes_the_mean_off(self, classifier, conformer, wavs):
        for _ in range(2):  # and learns nothing meanwhile
            found = classifier.encode_batch(wavs[0].expand(3, -1), normalize=True)
            expected = conformer.embeddings[0] - conformer.mean
            close(found.squeeze(1), expected.expand(3, -1))

    def test_labels(self, classifier, conformer, wavs):
        for number, wav in enumerate(wavs):
            cosines, score, index, text = classifier.classify_batch(wav.unsqueeze(0))
            expected = F.cosine_similarity(
                conformer.embeddings[number], conformer.embeddings
            )
            close(cosines[0], expected)
            close(score, torch.ones(1))
            assert index.tolist() == [number]
            assert text == [LABELS[number]]

    def test_speaker_recognition(self, conformer, wavs, tmp_path):
        verifier = SpeakerRecognition.from_hparams(
            source=str(conformer.folder),
            savedir=str(tmp_path / "kept"),
            run_opts={"device": "cpu"},
        )
        for other, expected in zip(wavs[1:], conformer.scores, strict=True):
            score, _ = verifier.verify_batch(wavs[0][None], other[None])
            close(score.flatten(), expected[None])

    def test_files_come_at_the_models_rate(self, tmp_path, wavs):
        narrow = Exported(tmp_path / "model", wavs, sample_rate=8000)
        classifier = EncoderClassifier.from_hparams(
            source=str(narrow.folder), run_opts={"device": "cpu"}
        )
        time = np.arange(16000) / 16000
        tone = np.sin(2 * np.pi * 500 * time)
        soundfile.write(tmp_path / "tone.wav", tone, 16000, subtype="FLOAT")
        wav = classifier.load_audio(str(tmp_path / "tone.wav"))
        assert wav.shape == (8000,)
        np.testing.assert_allclose(wav[100:-100], tone[::2][100:-100], atol=2e-3)


@pytest.fixture(params=["conformer", "ecapa"])
def exported(request):
    return request.getfixturevalue(request.param)


class TestFiles:
    def test_nothing_is_missing_or_left_over(self, exported):
        assert {path.name for path in exported.folder.iterdir()} == FILES
        assert [path.name for path in exported.folder.parent.iterdir()] == ["model"]

    def test_no_absolute_path(self, exported):
        here = [str(ROOT), str(exported.folder.parent), "/absolute", str(Path.home())]
        for path in exported.folder.iterdir():
            content = path.read_bytes()
            assert not any(place.encode() in content for place in here), path
            if path.suffix in (".yaml", ".json", ".txt"):
                assert not re.search(rb"(^|[\s'\"=:])/\w", content), path

    def test_metrics(self, exported):
        found = json.loads((exported.folder / "metrics.json").read_text())
        assert found == exported.metrics

    def test_card_has_the_metrics(self, exported):
        card = (exported.folder / "README.md").read_text(encoding="utf-8")
        for part in (
            "| valid | 12.34 % | 0.432 | 321 | 654 |",
            "| test | 5.67 % | 0.432 | 222 | 333 |",
            "12,345 parameters",
            "Licence of the recordings: none needed",
            "16000 Hz",
            f"threshold {exported.threshold:.4f} (cosine score)",
            type(getattr(exported.hparams["embedding_model"], "encoder", None)).__name__
            if exported.text.count("ConformerEncoder")
            else "ECAPA_TDNN",
        ):
            assert part in card
        assert "Publish it only with their consent." in card
        assert not re.search(r"\{\w+\}", card)  # every blank is filled in
        code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        assert len(code) == 2
        for block in code:
            ast.parse(block)

    def test_custom_module_stands_alone(self, exported):
        text = (exported.folder / "custom.py").read_text(encoding="utf-8")
        tree = ast.parse(text)
        compile(tree, "custom.py", "exec")
        imported, defined = set(), Counter()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
        libraries = {"speechbrain", "torch", "numpy", "safetensors"}
        assert imported <= libraries | sys.stdlib_module_names
        # Parts of one name would take each other's place.
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                defined[node.name] += 1
            elif isinstance(node, ast.Assign):
                defined.update(ast.unparse(target) for target in node.targets)
        assert max(defined.values()) == 1
        assert "SpeakerVerifier" in defined

    def test_all_parts_of_the_yaml_are_in_the_custom_module(self, exported):
        named = re.findall(
            r"local_modules[\w.]*\.(\w+)",
            (exported.folder / "hyperparams.yaml").read_text(encoding="utf-8"),
        )
        text = (exported.folder / "custom.py").read_text(encoding="utf-8")
        kinds = ast.ClassDef | ast.FunctionDef
        defined = {n.name for n in ast.parse(text).body if isinstance(n, kinds)}
        assert named and set(named) <= defined


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start_over(home, old):
    """The old folder, and what earlier kills may have left beside it."""
    shutil.rmtree(home)
    left = {"model": old, ".model.part": {"x": b""}, ".model.old": {"x": b""}}
    for name, files in left.items():
        (home / name).mkdir(parents=True)
        for file, data in files.items():
            (home / name / file).write_bytes(data)


def write_until_operation(exported, folder, last_operation):
    """Writes the folder, and dies before the given file operation."""
    n_seen = 0

    def count(event, args):
        nonlocal n_seen
        # What deletes a tree names its files relative to an open folder.
        opens = event == "open" and str(folder.parent) in str(args[0])
        if opens or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            n_seen += 1
            if n_seen == last_operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    exported.write(folder)


class TestKilled:
    @pytest.fixture
    def old(self, conformer, tmp_path):
        shutil.copytree(conformer.folder, tmp_path / "model")
        (tmp_path / "model" / "README.md").write_text("the old one")
        return content(tmp_path / "model")

    def test_before_any_file_operation(self, conformer, tmp_path, old):
        folder = tmp_path / "model"
        new = content(conformer.folder)
        context = multiprocessing.get_context("fork")
        seen = Counter()
        for operation in range(1, 100):
            start_over(tmp_path, old)
            process = context.Process(
                target=write_until_operation, args=(conformer, folder, operation)
            )
            process.start()
            process.join(60)
            if folder.exists():
                found = content(folder)
                assert found in (old, new)
                seen["old" if found == old else "new"] += 1
            else:
                # Between two renames; nothing is lost.
                assert content(tmp_path / ".model.old") == old
                seen["away"] += 1
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
        assert found == new
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert seen["old"] > 5 and seen["new"] > 5 and seen["away"] == 1

    def test_all_of_it_is_on_the_disk_first(self, conformer, tmp_path, unsynced):
        conformer.write(tmp_path / "model")
        assert not unsynced

    def test_full_disk(self, conformer, tmp_path, old, monkeypatch):
        save = model_folder.save_model

        def fail(model, path):
            if path.endswith("classifier.safetensors"):
                raise OSError(28, "No space left on device")
            save(model, path)

        monkeypatch.setattr(model_folder, "save_model", fail)
        with pytest.raises(OSError, match="No space"):
            conformer.write(tmp_path / "model")
        assert content(tmp_path / "model") == old
        monkeypatch.undo()
        conformer.write(tmp_path / "model")
        assert content(tmp_path / "model") == content(conformer.folder)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_people_keep_in_a_folder_stays(conformer, tmp_path):
    """A repository of a hub, in a folder that is a link to another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    for _ in range(2):
        conformer.write(tmp_path / "model")
        assert content(tmp_path / "model") == content(conformer.folder)
        (tmp_path / "disk" / ".git").mkdir()
        (tmp_path / "disk" / ".git" / "HEAD").write_text("ref: refs/heads/main")
        (tmp_path / "disk" / "corpus").symlink_to(tmp_path)
        conformer.write(tmp_path / "model")
        assert (tmp_path / "model").is_symlink()
        head = tmp_path / "disk" / ".git" / "HEAD"
        assert head.read_text() == "ref: refs/heads/main"
        assert (tmp_path / "disk" / "corpus").readlink() == tmp_path
        shutil.rmtree(head.parent)
        (tmp_path / "disk" / "corpus").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "model"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file for a pooling of one's own, and the recipe that names it."""
    monkeypatch.setattr(
        local_modules, "__path__", [*local_modules.__path__, str(tmp_path)]
    )
    _, text = made()
    text = text.replace("pooling.AttentiveStatisticsPooling", "own_pooling.OwnPooling")
    assert "own_pooling" in text
    return tmp_path / "own_pooling.py", text


def test_parts_that_would_overwrite_each_other_are_told_before_training(own):
    path, text = own
    path.write_text("SIZE = 2\n\n\nclass OwnPooling:\n    pass\n")
    check_parts(text)
    path.write_text(f"import torch\n{path.read_text()}")  # as others do
    check_parts(text)
    for doubled in (
        "def frame_mask():\n    pass\n",
        "_offset, frame_mask = 0, 0\n",
        "frame_mask: int = 0\n",
        "import os.path as frame_mask\n",
    ):
        path.write_text(f"{doubled}\n\nclass OwnPooling:\n    pass\n")
        with pytest.raises(InputError) as caught:
            check_parts(text)
        first, second = "local_modules.masking", "local_modules.own_pooling"
        told = str(caught.value)
        assert first in told and second in told and "both define frame_mask" in told


@pytest.mark.parametrize(
    "imports",
    [
        "from .dropout import Dropout",
        "from .masking import frame_counts",  # which others import, too
        "from . import dropout",
        "from local_modules.dropout import Dropout as Drop",
        "from local_modules import dropout",
        "from local_modules.evaluation import plda",
        "import local_modules.dropout",
        "import torch, local_modules.dropout as dropout",
        "def late(): from local_modules.dropout import Dropout",
        "if True: from local_modules.dropout import Dropout",
        "if not TYPE_CHECKING: from local_modules.dropout import Dropout",
    ],
)
@pytest.mark.parametrize("module", ["own_pooling", "own_blocks"])
def test_imports_that_cannot_be_followed_are_told_before_training(own, module, imports):
    path, text = own
    path.write_text(
        "from local_modules.own_blocks import Block\n\n\nclass OwnPooling(Block):\n"
        "    pass\n"
    )
    path.with_name("own_blocks.py").write_text("class Block:\n    pass\n")
    broken = path.with_name(f"{module}.py")
    head = "from typing import TYPE_CHECKING\n\n"
    broken.write_text(f"{head}{imports}\n{broken.read_text()}")
    with pytest.raises(InputError) as caught:
        check_parts(text)
    assert caught.value.args == (
        f"{broken}:3: a model folder cannot follow this import; write `from "
        "local_modules.MODULE import NAME` at the top of the file, without `as`, "
        "where NAME is no module",
    )


def test_imports_for_type_checkers_stay(own, conformer, tmp_path):
    path, text = own
    path.write_text(
        "import typing\nfrom typing import TYPE_CHECKING\n\n"
        "from local_modules.dropout import (\n    Dropout,\n)\n\n"
        "if TYPE_CHECKING:\n    from local_modules.evaluation import plda\n"
        "if typing.TYPE_CHECKING:\n    from .conformer import ConformerEncoder as C\n"
        "\n\nclass OwnPooling(Dropout):\n"
        '    def both(self, a: "plda.PLDA", b: "C"):\n        pass\n'
    )
    check_parts(text)
    backend = Backend(conformer.mean, F.normalize(torch.eye(8), dim=-1))
    folder = tmp_path / "model"
    write_model_folder(folder, conformer.hparams, text, backend, conformer.metrics)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "import custom; custom.OwnPooling(0.5)"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
