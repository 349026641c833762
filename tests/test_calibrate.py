"""calibrate.py as a person runs it, on a small trained model and trials that its own
calibration doesn't fit."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from speechbrain.inference.interfaces import foreign_class

import calibrate
import evaluate
import speaker
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.inference.verification import Verifier
from local_modules.manifest import Utterance, write_manifest
from local_modules.metrics import cllr, equal_error_rate, min_cllr
from tests.random_models import write_model


@pytest.fixture(scope="module")
def noisy(voices_folder, tmp_path_factory):
    """The training voices, each recording with all those of the others under noise."""
    folder = tmp_path_factory.mktemp("noisy")
    rng = np.random.default_rng(0)
    names = []
    for path in sorted((voices_folder / "train").rglob("[0-3].wav")):
        wave, rate = soundfile.read(path)
        names.append(f"{path.parent.name}-{path.name}")
        noise = 2 * wave.std() * rng.standard_normal(len(wave))
        soundfile.write(folder / names[-1], wave, rate)
        soundfile.write(folder / f"under-{names[-1]}", wave + noise, rate)
    lines = [
        f"{int(a.split('-')[0] == b.split('-')[0])} {a} under-{b}"
        for a in names
        for b in names
        if a != b
    ]
    (folder / "trials.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def model(trained_run, tmp_path):
    """A copy: what is embedded is kept beside a model."""
    return shutil.copytree(trained_run / "model", tmp_path / "old" / "model")


def command(model, data, output, trials="trials.txt"):
    return [
        *(f"{model}", "--trials", f"{data / trials}"),
        *("--data_folder", f"{data}", "--output_folder", f"{output}"),
    ]


def evaluated(model, data, folder):
    """Labels, and scores by name, as evaluate.py writes them."""
    output = ["--output_folder", str(folder), "--resamples", "2"]
    trials = ["--trials", f"{data / 'trials.txt'}", "--data_folder", f"{data}"]
    assert evaluate.main([str(model), *trials, *output]) == 0
    table = np.genfromtxt(folder / "scores.csv", delimiter=",", names=True, dtype=None)
    return table["label"] == 1, table["cosine"], table["calibrated"]


def test_the_threshold_and_the_ratios_are_those_of_the_trials(
    model, noisy, tmp_path, capsys
):
    new = tmp_path / "new" / "model"
    assert calibrate.main(command(model, noisy, new)) == 0
    said = capsys.readouterr().out.splitlines()
    labels, cosine, before = evaluated(model, noisy, tmp_path / "before")
    _, same, after = evaluated(new, noisy, tmp_path / "after")
    np.testing.assert_allclose(same, cosine, atol=1e-6)
    eer, threshold = equal_error_rate(cosine[labels], cosine[~labels])
    for loads in (Verifier, load):
        assert loads(new).threshold == pytest.approx(threshold, abs=1e-6)
    costs = [cllr(llrs[labels], llrs[~labels]) for llrs in (before, after)]
    assert costs[1] < costs[0] - 0.05
    n_target, n_nontarget = labels.sum(), (~labels).sum()
    assert said[0] == (
        f"{n_target} target and {n_nontarget} non-target trials, 6 speakers as far as "
        "the list says"
    )
    assert "so few speakers" in said[1]
    old = Verifier(model).threshold
    expected = f"threshold  {threshold:.4f}, was {old:.4f}; EER {100 * eer:.2f} %"
    assert said[2] == f"{expected} (cosine)"
    assert said[3].startswith(f"C_llr      {costs[0]:.3f} before, ")
    least = min_cllr(after[labels], after[~labels])
    assert said[4] == f"C_llr      {costs[1]:.3f} after, {least:.3f} at best"
    assert said[-1] == f"model      {new}"


def load(model):
    """As README has it; what a stranger's program decides by."""
    options = {"pymodule_file": "custom.py", "classname": "SpeakerVerifier"}
    return foreign_class(str(model), **options).hparams


def test_nothing_else_changes_and_the_files_say_what_did(model, noisy, tmp_path):
    new = tmp_path / "new"
    (model / ".git").mkdir()  # as of a model that came from a hub
    assert calibrate.main(command(model, noisy, new)) == 0
    (model / ".git").rmdir()
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    found = {path.name: path.read_bytes() for path in new.iterdir()}
    assert files.keys() == found.keys()
    changed = {name for name in files if files[name] != found[name]}
    texts = {"hyperparams.yaml", "metrics.json", "README.md"}
    assert changed == texts | {"calibration.json"}
    lines = zip(
        *(f["hyperparams.yaml"].decode().splitlines() for f in (files, found)),
        strict=True,
    )
    assert [old.partition(":")[0] for old, new in lines if old != new] == ["threshold"]
    metrics = json.loads(found["metrics.json"])
    fitted_on = metrics.pop("calibration")
    assert metrics == json.loads(files["metrics.json"])
    assert fitted_on["trials"] == "trials.txt"
    assert fitted_on["eer_threshold"] == Verifier(new).threshold
    (told,) = re.findall("^.*decision threshold.*$", found["README.md"].decode(), re.M)
    assert f"threshold {fitted_on['eer_threshold']:.4f} (cosine" in told
    assert "non-target trials of the list `trials.txt`" in told and "valid" not in told


def test_an_earlier_calibration_is_replaced_and_no_other_folder(
    model, noisy, tmp_path, monkeypatch, capsys
):
    """Who is enrolled beside it stays it: the embeddings are the same."""
    new = tmp_path / "old" / "calibrated"
    enrolled = ["ann", str(noisy / "train0-0.wav"), "--model", str(model)]
    assert speaker.main(["enroll", *enrolled]) == 0
    embedded = []
    monkeypatch.setattr(
        SpeakerModel,
        "embed",
        lambda *args, embed=SpeakerModel.embed: embedded.append(args) or embed(*args),
    )
    for _ in range(2):
        embedded.clear()
        assert calibrate.main(command(model, noisy, new)) == 0
    assert len(embedded) == 1  # to check the backend; the recordings were kept
    assert (new / "README.md").read_text().count("decision threshold") == 1
    capsys.readouterr()
    asked = ["identify", str(noisy / "train0-0.wav"), "--model", str(new)]
    assert speaker.main(asked) == 0
    assert "ann" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in model.iterdir()}
    assert calibrate.main(command(model, noisy, model)) == 2
    assert "exists, and calibrate.py has not written it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_beside_a_manifest_the_stretches_that_it_names_are_compared(
    model, noisy, tmp_path
):
    """Of two files that are one and a half, as of the halves by themselves."""
    halves, joined = tmp_path / "halves", tmp_path / "joined"
    for folder in (halves, joined):
        folder.mkdir()
        shutil.copy(noisy / "trials.txt", folder / "test_trials.txt")
    rows = []
    for path in noisy.glob("*.wav"):
        wave, rate = soundfile.read(path, dtype="int16")
        soundfile.write(halves / path.name, wave[4000:], rate)
        soundfile.write(joined / path.name, wave, rate)
        seconds = (len(wave) - 4000) / rate
        rows.append(Utterance(path.name, seconds, path.name, 4000, len(wave), "s"))
    write_manifest(joined / "test.csv", rows)
    found = []
    for folder in (halves, joined):
        new = tmp_path / f"of_{folder.name}"
        assert calibrate.main(command(model, folder, new, "test_trials.txt")) == 0
        found.append(Verifier(new).threshold)
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_broken_recording_is_named_and_nothing_is_written(
    model, noisy, tmp_path, capsys
):
    data = shutil.copytree(noisy, tmp_path / "data")
    (data / "train0-0.wav").write_bytes(b"no sound")
    assert calibrate.main(command(model, data, tmp_path / "new")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"calibrate.py: {data / 'train0-0.wav'}: ")
    assert error.endswith("; repair it, or leave its trials out")
    assert not (tmp_path / "new").exists()


def test_a_mistake_is_one_line_and_status_2(model, noisy, tmp_path, capsys):
    def mistake(*args):
        assert calibrate.main(command(*args)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("calibrate.py: ")

    new = tmp_path / "new"
    bare = write_model(tmp_path / "bare")[0]
    (bare / "backend.safetensors").unlink()
    told = mistake(bare, noisy, new)
    assert told.startswith(f"{bare}: is not a folder with a backend")
    assert "is not a speaker model" in mistake(tmp_path / "none", noisy, new)
    (noisy / "one.txt").write_text("1 train0-0.wav train0-1.wav")
    assert "has no non-target trial" in mistake(model, noisy, new, "one.txt")
    assert mistake(model, noisy, tmp_path) == (
        f"--output_folder {tmp_path}: exists, and calibrate.py has not written it; "
        "choose another"
    )
    (noisy / "few.txt").write_text(
        "1 train0-0.wav train0-1.wav\n0 train0-0.wav train1-1.wav\n"
    )
    told = mistake(model, noisy, new, "few.txt")
    assert "has 1 target and 1 non-target trials; 50 of each are the minimum" in told
    told = mistake(model, tmp_path / "no", new, noisy / "trials.txt")
    assert told == f"--data_folder {tmp_path / 'no'}: there is no such folder"
    assert not new.exists()
