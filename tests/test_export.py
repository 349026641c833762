"""export.py as a person runs it, and its file where there is no PyTorch."""

import errno
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import numpy_helper

import export
from local_modules.inference import onnx_export
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.manifest import Utterance, write_manifest
from local_modules.metrics import equal_error_rate
from tests.random_models import THRESHOLD, write_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(voices_folder, tmp_path_factory):
    """What a training leaves that matters here, with random weights; and exported."""
    folder = tmp_path_factory.mktemp("run")
    _, text = write_model(folder / "model", data_folder=str(voices_folder))
    (folder / "hyperparams.yaml").write_text(text)
    (folder / "manifests").mkdir()
    files = sorted(voices_folder.glob("test/*/*.wav"))
    lines = [
        f"{one.parent == other.parent:d} {one.relative_to(voices_folder)} "
        f"{other.relative_to(voices_folder)}\n"
        for index, one in enumerate(files)
        for other in files[:index]
    ]
    (folder / "manifests" / "test_trials.txt").write_text("".join(lines))
    assert export.main([str(folder / "model"), "--format", "onnx"]) == 0
    return folder


@pytest.fixture
def made(run, monkeypatch):
    """The graph that was traced in `run`, so that no other test has to."""
    graph = onnx.load(run / "model.onnx")
    monkeypatch.setattr(export, "onnx_graph", lambda model: graph)
    # A minute is checked in tests/local_modules/inference/test_onnx_export.py.
    monkeypatch.setattr(onnx_export, "CHECKED_SECONDS", (0.5, 3.01))
    return graph


def command(run, output, *more):
    return [f"{run / 'model'}", "--format", "onnx", "--output", f"{output}", *more]


def snippet():
    """The program in docs/export.md."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL
    )
    return code


def test_the_file_stands_beside_the_model_folder(run, monkeypatch):
    """A new training replaces the folder."""
    assert (run / "model.onnx").stat().st_size > 100_000
    assert not [path for path in run.rglob("*") if "part" in path.name]
    assert not list((run / "model").glob("*.onnx"))
    monkeypatch.chdir(run / "model")
    for more, name in (([], "model.onnx"), (["--quantize", "int8"], "model.int8.onnx")):
        assert export.parse([".", "--format", "onnx", *more]).output == run / name


def test_runs_where_torch_is_not(run, voices_folder, tmp_path):
    home = tmp_path / "elsewhere"
    venv.create(home / "venv", with_pip=True)
    python = home / "venv" / "bin" / "python"
    packages = ["numpy", "onnxruntime", "soundfile"]
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *packages],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"no package index: {installed.stderr.splitlines()[-1]}")
    shutil.copy(run / "model.onnx", home)
    one, two = sorted(voices_folder.glob("test/*/0.wav"))[:2]
    shutil.copy(one, home / "one.wav")
    shutil.copy(two, home / "two.wav")
    (home / "compare.py").write_text(snippet())
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    options = {"cwd": home, "env": env, "capture_output": True, "text": True}
    no_torch = subprocess.run([python, "-c", "import torch"], **options)
    assert "No module named 'torch'" in no_torch.stderr
    done = subprocess.run([python, "compare.py"], **options)
    assert done.returncode == 0, done.stderr
    model = SpeakerModel(str(run / "model"))
    embeddings = [model.embed([model.read(path)])[0] for path in (one, two)]
    expected = torch.cosine_similarity(*embeddings, dim=0).item()
    score, decision = done.stdout.split()
    assert float(score) == pytest.approx(expected, abs=2e-4)
    assert decision == str(expected > THRESHOLD)


def eer_of(model, run, root):
    """Slowly: a trial at a time. All recordings are one batch, for in 8 bits neighbours
    move an embedding a little."""
    text = (run / "manifests" / "test_trials.txt").read_text()
    lines = [line.split() for line in text.splitlines()]
    paths = {path for line in lines for path in line[1:]}
    wavs = {path: model.read(root / path) for path in paths}
    longest_first = sorted(wavs, key=lambda path: len(wavs[path]), reverse=True)
    batch = model.embed([wavs[path] for path in longest_first])
    vectors = dict(zip(longest_first, batch, strict=True))
    scores = np.array(
        [torch.cosine_similarity(vectors[a], vectors[b], dim=0) for _, a, b in lines]
    )
    labels = np.array([line[0] == "1" for line in lines])
    return equal_error_rate(scores[labels], scores[~labels])[0]


def test_int8_says_what_it_costs(run, made, voices_folder, tmp_path, capsys):
    # Of no other test are there embeddings.
    nothing_kept = shutil.ignore_patterns("embeddings.db*")
    run = shutil.copytree(run, tmp_path / "run", ignore=nothing_kept)
    output = tmp_path / "small.onnx"
    assert export.main(command(run, output, "--quantize", "int8")) == 0
    model = SpeakerModel(str(run / "model"))
    int8 = export.OnnxModel(onnx.load(output), model)
    said = capsys.readouterr().out
    found = re.search(r"on 66 trials: (.*) % before, (.*) % in int8", said)
    before, after = (float(rate) / 100 for rate in found.groups())
    assert before == pytest.approx(eer_of(model, run, voices_folder), abs=1e-4)
    assert after == pytest.approx(eer_of(int8, run, voices_folder), abs=1e-4)
    assert int8.session.get_modelmeta().custom_metadata_map["quantization"] == "int8"


def test_trials_that_training_had_elsewhere(run, made, tmp_path, capsys):
    """As the trainings of a study have: the manifests are the study's."""
    copy = tmp_path / "copy"
    shutil.copytree(run / "model", copy / "model")
    elsewhere = shutil.copytree(run / "manifests", tmp_path / "elsewhere")
    text = (run / "hyperparams.yaml").read_text()
    text = re.sub("(?m)^manifest_folder: .*", f"manifest_folder: {elsewhere}", text)
    (copy / "hyperparams.yaml").write_text(text)
    output = tmp_path / "small.onnx"
    assert export.main(command(copy, output, "--quantize", "int8")) == 0
    assert "on 66 trials" in capsys.readouterr().out


def test_trials_of_ones_own(run, made, voices_folder, tmp_path, capsys):
    lines = (run / "manifests" / "test_trials.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join(lines[:40]))
    trials = ("--trials", f"{tmp_path / 'list.txt'}", "--data_folder")
    more = ("--quantize", "int8", *trials, f"{voices_folder}")
    assert export.main(command(run, tmp_path / "a.onnx", *more)) == 0
    assert "on 40 trials" in capsys.readouterr().out
    more = ("--quantize", "int8", *trials, f"{tmp_path}")
    assert export.main(command(run, tmp_path / "b.onnx", *more)) == 2
    (error,) = capsys.readouterr().err.splitlines()[-1:]
    assert "10 of 10 recordings can't be embedded" in error
    assert not (tmp_path / "b.onnx").exists()


def test_stretches_of_files_are_read_as_in_training(
    run, made, voices_folder, tmp_path, capsys
):
    """What is around them is no sound."""
    data, cut = tmp_path / "data", []
    for file in sorted(voices_folder.glob("test/*/*.wav")):
        samples, rate = soundfile.read(file, dtype="float32")
        path = file.relative_to(voices_folder)
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        around = np.pad(samples, (100, 50), constant_values=np.nan)
        soundfile.write(data / path, around, rate, subtype="FLOAT")
        end, speaker = 100 + len(samples), file.parent.name
        seconds = len(samples) / rate
        cut.append(Utterance(f"{path}", seconds, f"{path}", 100, end, speaker))
    write_manifest(tmp_path / "cut.csv", cut)
    trials = shutil.copy(
        run / "manifests" / "test_trials.txt", tmp_path / "cut_trials.txt"
    )
    more = ("--trials", f"{trials}", "--data_folder", f"{data}", "--quantize", "int8")
    assert export.main(command(run, tmp_path / "a.onnx", *more)) == 0
    said = capsys.readouterr().out
    model = SpeakerModel(str(run / "model"))
    (before,) = re.findall(r"on 66 trials: (.*) % before", said)
    expected = eer_of(model, run, voices_folder)
    assert float(before) / 100 == pytest.approx(expected, abs=1e-4)


def test_a_bad_recording_is_left_out(run, made, voices_folder, tmp_path, capsys):
    lines = (run / "manifests" / "test_trials.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join(lines))
    data = shutil.copytree(voices_folder, tmp_path / "data")
    bad = data / lines[0].split()[1]
    bad.write_bytes(bad.read_bytes()[:1000])
    trials = ("--trials", f"{tmp_path / 'list.txt'}", "--data_folder", f"{data}")
    more = ("--quantize", "int8", *trials)
    assert export.main(command(run, tmp_path / "a.onnx", *more)) == 0
    said = capsys.readouterr().out
    assert f"{bad}: is truncated to" in said
    assert "1 of 12 recordings can't be embedded" in said
    assert "on 55 trials" in said  # of 66; eleven were with it


@pytest.mark.parametrize("missing", ["manifests", "recordings"])
def test_without_its_trials_it_says_so_and_goes_on(
    run, made, tmp_path, capsys, missing
):
    copy = tmp_path / "copy"
    shutil.copytree(run / "model", copy / "model")
    if missing == "recordings":
        shutil.copytree(run / "manifests", copy / "manifests")
        text = (run / "hyperparams.yaml").read_text()
        data = re.search(r"^data_folder: (.*)$", text, re.MULTILINE)[1]
        (copy / "hyperparams.yaml").write_text(text.replace(data, "/no/such/folder"))
    output = tmp_path / "small.onnx"
    assert export.main(command(copy, output, "--quantize", "int8")) == 0
    said = capsys.readouterr().out
    assert "give --trials LIST --data_folder DIR" in said and "EER on" not in said
    assert output.exists()


def test_the_recipe_beside_a_model_runs_nothing(run, made, tmp_path, capsys):
    copy, victim = tmp_path / "copy", tmp_path / "victim"
    shutil.copytree(run / "model", copy / "model")
    shutil.copytree(run / "manifests", copy / "manifests")
    command_line = f"!applyref:os.system ['touch {victim}']"
    (copy / "hyperparams.yaml").write_text(f"data_folder: {command_line}\n")
    output = tmp_path / "small.onnx"
    assert export.main(command(copy, output, "--quantize", "int8")) == 0
    assert "has no test trials" in capsys.readouterr().out
    assert not victim.exists()


@pytest.mark.parametrize("quantize", [(), ("--quantize", "int8")])
def test_a_graph_that_is_not_the_model_is_not_written(
    run, made, tmp_path, capsys, quantize
):
    for weight in made.graph.initializer:
        values = numpy_helper.to_array(weight)
        if "embedding_model" in weight.name and "running_var" not in weight.name:
            weight.CopyFrom(numpy_helper.from_array(-values, weight.name))
    (tmp_path / "model.onnx").write_bytes(b"old")
    assert export.main(command(run, tmp_path / "model.onnx", *quantize)) == 1
    error = capsys.readouterr().err
    assert error.startswith("export.py: ") and error.count("\n") == 1
    assert "an embedding differs by" in error
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_a_file_too_large_for_its_place_is_one_line(run, made, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (made.ByteSize() - 1, limits[1]))
    try:
        status = export.main(command(run, tmp_path / "model.onnx"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("export.py: ") and error.count("\n") == 1
    assert "model.onnx: can't be written: File too large" in error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_a_run_that_failed(
    run, made, tmp_path, capsys, monkeypatch
):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert export.main(command(run, tmp_path / "model.onnx")) == 1
    assert capsys.readouterr().err == (
        f"export.py: {tmp_path / 'model.onnx'}: No space left on device; make room. "
        "Nothing was written.\n"
    )
    assert not list(tmp_path.iterdir())


def write_until_operation(arguments, folder, last_operation):
    """Exports, and dies before the given file operation in a folder."""
    n_seen = 0

    def count(event, args):
        nonlocal n_seen
        if event in ("open", "os.rename", "os.remove") and str(folder) in str(args[0]):
            n_seen += 1
            if n_seen == last_operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sys.exit(export.main(arguments))


def test_killed_at_any_operation_it_leaves_a_whole_file(run, made, tmp_path):
    output = tmp_path / "model.onnx"
    output.write_bytes(b"old")
    seen = []
    for operation in range(1, 10):
        process = multiprocessing.get_context("fork").Process(
            target=write_until_operation,
            args=(command(run, output), tmp_path, operation),
        )
        process.start()
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        seen.append(output.read_bytes())
    assert len(seen) >= 2 and set(seen) <= {b"old", made.SerializeToString()}
    assert output.read_bytes() == made.SerializeToString()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL"], "--format"),
        (["MODEL", "--format", "tflite"], "'tflite'"),
        (["MODEL", "--format", "onnx", "--quantize", "int4"], "'int4'"),
        (["MODEL", "--format", "onnx", "--trials", "a"], "both of them or neither"),
        (
            ["MODEL", "--format", "onnx", "--trials", "a", "--data_folder", "b"],
            "is for --quantize int8",
        ),
        (["MODEL", "--format", "onnx", "--output", "no/such/a.onnx"], "exists"),
        (["MODEL", "--format", "onnx", "--output", "."], "exists"),
        (["MODEL", "--format", "onnx", "--output", "/proc/a"], "/proc: can't be"),
        (["no/model", "--format", "onnx"], "no/model: is not a folder"),
        (["empty", "--format", "onnx"], "empty: is not a speaker model"),
        (["MODEL", "--formats", "onnx"], "--format"),
    ],
)
def test_wrong_usage_is_one_line(run, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = [str(run / "model") if a == "MODEL" else a for a in arguments]
    assert export.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("export.py: ") and error.count("\n") == 1
    assert words in error
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        export.main(["--help"])
    assert end.value.code == 0
    assert "example: python export.py" in capsys.readouterr().out
