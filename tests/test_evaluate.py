"""evaluate.py as a person runs it, on a small trained model."""

import csv
import io
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.functional import normalize

import evaluate
from local_modules.evaluation import confidence
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.manifest import read_manifest, write_manifest
from local_modules.metrics import equal_error_rate


@pytest.fixture
def run(trained_run):
    return trained_run


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(run, voices_folder, *more, trials=None):
    trials = trials or run / "manifests" / "test_trials.txt"
    return [
        f"{run / 'model'}",
        *("--trials", f"{trials}", "--data_folder", f"{voices_folder}"),
        *("--resamples", "50", *more),
    ]


def results_in(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_cosine_is_what_training_measured(run, voices_folder, here, capsys):
    assert evaluate.main(command(run, voices_folder)) == 0
    folder = here / "results" / "evaluation" / "test_trials"
    results = results_in(folder)
    trained = json.loads((run / "metrics.json").read_text())["test"]
    cosine = results["systems"]["cosine"]
    assert cosine["eer"] == pytest.approx(trained["eer"], abs=1e-6)
    assert cosine["min_dcf_0.01"] == pytest.approx(trained["min_dcf"], abs=1e-6)
    assert cosine["n_target"] == trained["n_target"]
    assert list(results["systems"]) == [
        "cosine",
        "PLDA",
        "mean subtracted",
        "S-norm",
        "AS-norm",
        "calibrated",
    ]
    assert results["headline"] == "calibrated"
    assert "p_value" in results["systems"]["AS-norm"]
    assert "cllr" in results["systems"]["calibrated"]

    with open(folder / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == cosine["n_target"] + cosine["n_nontarget"]
    labels = np.array([row["label"] == "1" for row in rows])
    for name, metrics in results["systems"].items():
        scores = np.array([float(row[name]) for row in rows])
        eer, _ = equal_error_rate(scores[labels], scores[~labels])
        assert metrics["eer"] == pytest.approx(eer)
    output = capsys.readouterr().out
    for words in ("AS-norm", "0 lines left out", "report.html"):
        assert words in output
    page = (folder / "report.html").read_text()
    assert "http" not in page.split("<body>")[1]
    for name in ("det", "scores", "calibration"):
        assert (folder / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


LOOK = """({
    wide: document.documentElement.scrollWidth - window.innerWidth,
    pictures: [...document.images].map(image => image.naturalWidth > 0),
    answer: document.querySelector(".answer").innerText,
    rows: [...document.querySelector("table").rows].map(row => row.cells[0].innerText),
    loaded: performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
})"""


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_in_a_browser(width, run, voices_folder, here, in_browser):
    """On a phone and on a desk: no error on the console, nothing wider than the screen
    or from the network, and the numbers of the table on the screen."""
    assert evaluate.main(command(run, voices_folder)) == 0
    folder = here / "results" / "evaluation" / "test_trials"
    systems = results_in(folder)["systems"]
    found, console = in_browser((folder / "report.html").read_text(), LOOK, width)
    assert not console and not found["loaded"]
    assert found["wide"] <= 0
    assert found["pictures"] == [True, True, True]
    assert f"{100 * systems['calibrated']['eer']:.2f} %" in found["answer"]
    assert found["rows"] == ["system", *systems]


def test_a_second_run_embeds_nothing(run, voices_folder, here, monkeypatch):
    assert evaluate.main(command(run, voices_folder)) == 0
    monkeypatch.setattr(evaluate.SpeakerModel, "read", None)
    assert evaluate.main(command(run, voices_folder)) == 0


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_person_sees_how_far_it_is(
    is_terminal, run, voices_folder, here, monkeypatch
):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    assert evaluate.main(command(run, voices_folder)) == 0
    for bar in ("Systems: 100%|##########| 6/6", "Parts: 100%|##########| 2/2"):
        assert (bar in screen.getvalue().replace("█", "#")) == is_terminal


def test_lines_of_no_use_are_left_out_or_end_it(run, voices_folder, here, capsys):
    data = here / "data"
    shutil.copytree(voices_folder, data)
    lines = (run / "manifests" / "test_trials.txt").read_text().splitlines()
    broken = lines[0].split()[1]
    (data / broken).write_bytes(b"nothing")
    n_lost = sum(broken in line.split() for line in lines)
    trials = here / "list.txt"
    trials.write_text("\n".join(["3 a b", *lines, "1 no/such.wav " + broken]))
    assert evaluate.main(command(run, data, trials=trials)) == 0
    results = results_in(here / "results" / "evaluation" / "list")
    assert results["n_left_out"] == n_lost + 2
    with open(here / "results/evaluation/list/scores.csv", newline="") as file:
        rows = [
            (row["label"], row["enrol"], row["test"]) for row in csv.DictReader(file)
        ]
    assert rows == [tuple(line.split()) for line in lines if broken not in line.split()]
    output = capsys.readouterr().out
    assert f"left out: {trials}:1: label is '3'" in output
    text = (here / "results" / "evaluation" / "list" / "left_out.txt").read_text()
    assert f"{trials}:{len(lines) + 2}: no/such.wav: " in text

    assert evaluate.main(command(run, data, "--strict", trials=trials)) == 2
    assert capsys.readouterr().err.startswith(f"evaluate.py: {trials}:1: label")
    trials.write_text("\n".join(lines))
    assert evaluate.main(command(run, data, "--strict", trials=trials)) == 2
    assert f"{trials}:1: {broken}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "end", "shown"),
    [
        # One speaker has a target trial: of others, 95 % may be worse.
        ((1, 0), [0.0, 0.95], "0.00 to 95.00"),
        ((0, 1), None, "?"),
    ],
)
def test_two_trials_say_hardly_anything(
    labels, end, shown, run, voices_folder, here, capsys
):
    """An error can't be drawn if there is none; and in one draw of two speakers, the
    first may be missing, and with him the target trial."""
    pairs = ("test/test0/1.wav", "test/test1/0.wav")
    lines = [
        f"{label} test/test0/0.wav {other}"
        for label, other in zip(labels, pairs, strict=True)
    ]
    (here / "two.txt").write_text("\n".join(lines))
    more = ("--resamples", "1")
    assert evaluate.main(command(run, voices_folder, *more, trials="two.txt")) == 0
    folder = here / "results" / "evaluation" / "two"
    text = (folder / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=pytest.fail)["systems"]["cosine"]
    assert metrics["intervals"]["eer"] == (end and pytest.approx(end))
    output = capsys.readouterr().out
    (row,) = [line for line in output.splitlines() if line.startswith("cosine")]
    assert f" {shown}  " in row
    assert end is None or "With an EER of 0, the interval follows" in output
    assert f"<td>{shown}</td>" in (folder / "report.html").read_text()


def test_samples_that_are_no_numbers_are_left_out(run, voices_folder, here, capsys):
    data = here / "data"
    shutil.copytree(voices_folder, data)
    lines = (run / "manifests" / "test_trials.txt").read_text().splitlines()
    broken = lines[0].split()[1]
    samples, rate = soundfile.read(data / broken)
    samples[5] = np.nan
    soundfile.write(data / broken, samples, rate, subtype="FLOAT")
    assert evaluate.main(command(run, data)) == 0
    results = results_in(here / "results" / "evaluation" / "test_trials")
    assert results["n_left_out"] == sum(broken in line.split() for line in lines)
    assert f"{broken}: holds NaN or infinite samples" in capsys.readouterr().out


def test_stretches_of_files_are_read_as_in_training(run, voices_folder, here, capsys):
    """What is around them is no sound."""
    manifests, cut = run / "manifests", []
    for one in read_manifest(manifests / "test.csv"):
        samples, rate = soundfile.read(voices_folder / one.path, dtype="float32")
        path = here / "data" / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.pad(samples, (100, 50), constant_values=np.nan)
        soundfile.write(path, samples, rate, subtype="FLOAT")
        cut.append(replace(one, start=100, stop=100 + one.stop))
    write_manifest(here / "cut.csv", cut)
    for name in ("cut_trials.txt", "whole.txt"):
        shutil.copy(manifests / "test_trials.txt", name)
    assert evaluate.main(command(run, voices_folder)) == 0
    assert evaluate.main(command(run, here / "data", trials="cut_trials.txt")) == 0
    expected, found = (
        results_in(here / "results" / "evaluation" / name)
        for name in ("test_trials", "cut_trials")
    )
    assert found["n_left_out"] == 0
    for way, metrics in expected["systems"].items():
        eer = found["systems"][way]["eer_threshold"]
        assert eer == pytest.approx(metrics["eer_threshold"], rel=1e-3, abs=1e-3)
    assert evaluate.main(command(run, here / "data", trials="whole.txt")) == 2
    assert "holds NaN or infinite samples" in capsys.readouterr().err


def test_models_are_compared_and_enrolled_with_several(run, voices_folder, here):
    shutil.copytree(run / "model", here / "other" / "model")
    speakers = sorted(path.name for path in (voices_folder / "test").iterdir())
    files = {}
    for s in speakers:
        names = sorted(path.name for path in (voices_folder / "test" / s).iterdir())
        files[s] = [f"test/{s}/{name}" for name in names]
    (here / "enrol.txt").write_text(
        "".join(f"m-{s} {' '.join(files[s][:3])}\n" for s in speakers)
    )
    (here / "list.txt").write_text(
        "".join(
            f"m-{a} {files[b][3]} {'target' if a == b else 'nontarget'}\n"
            for a in speakers
            for b in speakers
        )
    )
    (here / "meta.csv").write_text(
        "path,kind\n"
        + "".join(
            f"{path},{'one' if s == speakers[0] else 'two'}\n"
            for s in speakers
            for path in files[s]
        )
    )
    arguments = command(
        run,
        voices_folder,
        *("--enrolment", "enrol.txt", "--metadata", "meta.csv"),
        *("--output_folder", "out"),
        trials="list.txt",
    )
    assert evaluate.main([f"{here / 'other' / 'model'}", *arguments]) == 0
    results = results_in(here / "out")
    systems = results["systems"]
    assert len(systems) == 12
    same = systems[f"{run / 'model'}: cosine"]
    assert same["p_value"] == 1.0  # a copy of the same model
    for name, system in systems.items():
        source, way = name.split(": ")
        if source == f"{run / 'model'}":  # the second
            assert system["compared_with"] == f"{here / 'other' / 'model'}: {way}"
    assert same["n_target"] == 3 and same["n_nontarget"] == 6
    assert set(results["parts"]) == {"duration of the shorter side", "kind"}
    for groups in results["parts"]["kind"].values():
        assert set(groups) == {"two"}  # `one` has no non-target trial

    # A model is the mean of its recordings, which are longer than the test's.
    model = SpeakerModel(f"{run / 'model'}")
    wavs = {
        path: model.read(voices_folder / path) for own in files.values() for path in own
    }
    units = {
        path: normalize(model.embed([wav])[0], dim=0) for path, wav in wavs.items()
    }
    with open(here / "out" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shorter = []
    for row in rows:
        own = files[row["enrol"].removeprefix("m-")][:3]
        mean = normalize(torch.stack([units[path] for path in own]).mean(dim=0), dim=0)
        cosine = (mean @ units[row["test"]]).item()
        for source in (run, here / "other"):
            found = float(row[f"{source / 'model'}: cosine"])
            assert found == pytest.approx(cosine, abs=1e-4)
        n_samples = sum(len(wavs[path]) for path in own), len(wavs[row["test"]])
        shorter.append(min(n_samples) / 16000)
    low, high = np.quantile(shorter, [1 / 3, 2 / 3])
    for groups in results["parts"]["duration of the shorter side"].values():
        assert list(groups) == [
            f"under {low:.1f} s",
            f"{low:.1f} to {high:.1f} s",
            f"{high:.1f} s and more",
        ]


def test_metadata_say_who_is_drawn_anew(run, voices_folder, here, monkeypatch):
    """Without target trials of a speaker, each recording would be one of its own."""
    files = {
        folder.name: sorted(f"{p.relative_to(voices_folder)}" for p in folder.iterdir())
        for folder in sorted((voices_folder / "test").iterdir())
    }
    first, *others = files.values()
    lines = [f"1 {a} {b}" for a in first for b in first if a < b]
    lines += [f"0 {first[0]} {b}" for other in others for b in other]
    (here / "few.txt").write_text("\n".join(lines))
    counts = []

    def counted(*args):
        sides = confidence.speakers_of(*args)
        counts.append(len(np.unique(sides)))
        return sides

    monkeypatch.setattr(evaluate, "speakers_of", counted)
    cases = {"known": "speaker", "unknown": "nobody", "blank": "speaker"}
    for folder, column in cases.items():
        rows = [
            f"{path},{'' if folder == 'blank' else name}"
            for name, own in files.items()
            for path in own
        ]
        (here / "who.csv").write_text(f"path,{column}\n" + "\n".join(rows))
        more = ("--metadata", "who.csv", "--output_folder", folder)
        arguments = command(run, voices_folder, *more, trials="few.txt")
        assert evaluate.main(arguments) == 0
    n_recordings = 1 + sum(map(len, others))
    assert counts == [3, n_recordings, n_recordings]
    # What says who it is makes no groups.
    for folder in ("known", "blank"):
        parts = results_in(here / folder)["parts"]
        assert set(parts) == {"duration of the shorter side"}


def test_metadata_of_other_recordings(run, voices_folder, here, capsys):
    (here / "meta.csv").write_text("path,sex\n/elsewhere/1.wav,f\n")
    arguments = command(run, voices_folder, "--metadata", "meta.csv")
    assert evaluate.main(arguments) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "meta.csv: has no recording of the trials" in error and "such as" in error


def test_mean_of_scores(run, voices_folder, here):
    """Of every way, the mean over the single recordings of a model."""
    files = {
        folder.name: sorted(f"{path.relative_to(voices_folder)}" for path in paths)
        for folder in (voices_folder / "test").iterdir()
        if (paths := list(folder.iterdir()))
    }
    members = {
        f"m-{name}": own[:number]
        for number, (name, own) in enumerate(sorted(files.items()), start=1)
    }
    pairs = [(model, own[3]) for model in members for own in files.values()]
    (here / "enrol.txt").write_text(
        "".join(f"{model} {' '.join(own)}\n" for model, own in members.items())
    )
    (here / "list.txt").write_text(
        "".join(f"{int(m[2:] in test)} {m} {test}\n" for m, test in pairs)
    )
    (here / "single.txt").write_text(
        "".join(
            f"{int(m[2:] in test)} {own} {test}\n"
            for m, test in pairs
            for own in members[m]
        )
    )
    scores = {}
    for name, more in (
        ("list", ("--enrolment", "enrol.txt", "--mean_of_scores")),
        ("single", ()),
    ):
        arguments = command(run, voices_folder, *more, trials=f"{name}.txt")
        assert evaluate.main(arguments) == 0
        with open(f"results/evaluation/{name}/scores.csv", newline="") as file:
            scores[name] = list(csv.DictReader(file))
    ways = set(scores["list"][0]) - {"label", "enrol", "test"}
    assert {"cosine", "PLDA", "AS-norm", "calibrated"} <= ways
    singles = iter(scores["single"])
    for row in scores["list"]:
        own = [next(singles) for _ in members[row["enrol"]]]
        for way in ways:
            expected = np.mean([float(single[way]) for single in own])
            assert float(row[way]) == pytest.approx(expected, abs=1e-4)


def test_names_with_spaces(run, voices_folder, here):
    """As training writes them into its own list."""
    shutil.copytree(voices_folder / "test", here / "Ann Lee")
    lines = (run / "manifests" / "test_trials.txt").read_text().splitlines()
    (here / "list.txt").write_text(
        "".join(f"{line.replace('test/', 'Ann Lee/')}\n" for line in lines)
    )
    assert evaluate.main(command(run, here, trials="list.txt")) == 0
    results = results_in(here / "results" / "evaluation" / "list")
    assert results["n_left_out"] == 0
    trained = json.loads((run / "metrics.json").read_text())["test"]
    assert results["systems"]["cosine"]["eer"] == pytest.approx(trained["eer"])


def test_another_cohort(run, voices_folder, here):
    """A model without a backend of its own gets one of speakers in a folder, here of
    links to their folders."""
    (here / "cohort").mkdir()
    for speaker in (voices_folder / "train").iterdir():
        (here / "cohort" / speaker.name).symlink_to(speaker)
    shutil.copytree(run / "model", here / "model")
    (here / "model" / "backend.safetensors").unlink()
    (here / "model" / "calibration.json").unlink()
    arguments = command(run, voices_folder)[1:]
    assert evaluate.main([f"{here / 'model'}", *arguments]) == 0
    folder = here / "results" / "evaluation" / "test_trials"
    assert list(results_in(folder)["systems"]) == ["cosine"]
    cohort = ["--cohort", "cohort"]
    assert evaluate.main([f"{here / 'model'}", *arguments, *cohort]) == 0
    normalised = results_in(folder)
    names = ["cosine", "PLDA", "mean subtracted", "S-norm", "AS-norm"]
    assert list(normalised["systems"]) == names
    assert normalised["headline"] == "AS-norm"


def test_a_cohort_of_the_tested_is_refused(run, voices_folder, here, capsys):
    cohort = here / "cohort"
    shutil.copytree(voices_folder / "train", cohort)
    # Behind the recordings that the cohort is made of.
    (cohort / "train0" / "9.wav").symlink_to(voices_folder / "test" / "test0" / "0.wav")
    arguments = command(run, voices_folder, "--cohort", "cohort")
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        f"evaluate.py: --cohort {cohort}: train0/9.wav is in the trial list; a cohort "
        "has to be of other speakers"
    )


def test_recordings_of_a_cohort_that_are_of_no_use(run, voices_folder, here, capsys):
    cohort = here / "cohort"
    for name in ("train0", "train1", "train2"):
        shutil.copytree(voices_folder / "train" / name, cohort / name)
    for path in (cohort / "train0").iterdir():
        path.write_bytes(b"nothing")
    arguments = command(run, voices_folder, "--cohort", "cohort")
    assert evaluate.main(arguments) == 0
    output = capsys.readouterr().out
    assert f"left out: {cohort / 'train0' / '0.wav'}: " in output
    counted = "--cohort cohort: 5 of 15 recordings can't be embedded; "
    assert f"{counted}2 speakers are left\n" in output
    assert evaluate.main([*arguments, "--strict"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    bad = cohort / "train0" / "0.wav"
    assert error.startswith(f"evaluate.py: --cohort cohort: {bad}: ")
    # They are who scores are normalised by, not those that the model was trained on, on
    # whom its ratios rest; and two are too few for PLDA.
    folder = here / "results" / "evaluation" / "test_trials"
    names = ["cosine", "mean subtracted", "S-norm", "AS-norm"]
    assert list(results_in(folder)["systems"]) == names

    for path in (cohort / "train1").iterdir():
        path.write_bytes(b"nothing")
    assert evaluate.main(arguments) == 2
    counted = "--cohort cohort: 10 of 15 recordings can't be embedded; "
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"evaluate.py: {counted}two speakers are needed, 1 left"

    # A speaker's own folder is none of speakers.
    assert evaluate.main([*arguments, "--cohort", "cohort/train2"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has recordings of 0 speakers" in error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--trials", "none.txt"], "none.txt: cannot be read"),
        (["--metadata", "none.csv"], "none.csv: can't be read"),
        (["--enrolment", "none.txt"], "none.txt: cannot be read"),
        (["--cohort", "nowhere"], "nowhere: does not exist; DIR/"),
        (["--resamples", "0"], "--resamples 0"),
        (["--resamples", "x"], "--resamples"),
        (["--window_seconds", "nan"], "--window_seconds nan: has to be above 0"),
        (["--device", "gpu"], "--device gpu: "),
        (["--mean_of_scores"], "--mean_of_scores: is for --enrolment FILE"),
        (["--data_folder", "nowhere"], "there is no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    more, words, run, voices_folder, here, capsys
):
    assert evaluate.main(command(run, voices_folder, *more)) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("evaluate.py: ") and words in last


@pytest.mark.parametrize("place", ["taken", "taken/below", "/proc/evaluation"])
def test_where_nothing_can_be_written_nothing_is_computed(
    place, run, voices_folder, here, capsys
):
    (here / "taken").write_text("a file")
    shutil.copytree(run / "model", here / "model")
    arguments = command(run, voices_folder, "--output_folder", place)[1:]
    assert evaluate.main([f"{here / 'model'}", *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"evaluate.py: {place}/plots: can't be written: ")
    assert not (here / "embeddings.db").exists()


def test_the_model_here_is_left_as_it_is(run, voices_folder, here, monkeypatch):
    shutil.copytree(run / "model", here / "model")
    before = sorted(path.name for path in (here / "model").iterdir())
    monkeypatch.chdir("model")
    arguments = command(run, voices_folder, "--output_folder", "../out")[1:]
    assert evaluate.main([".", *arguments]) == 0
    assert sorted(path.name for path in (here / "model").iterdir()) == before
    assert (here / "embeddings.db").exists()


def test_no_model_is_one_line(voices_folder, run, here, capsys):
    arguments = command(run, voices_folder)
    assert evaluate.main(["nothing/model", *arguments[1:]]) == 2
    assert "nothing/model: is not a speaker model" in capsys.readouterr().err


def test_a_broken_recording_of_a_model_leaves_its_trials_out(run, voices_folder, here):
    """Whichever of its recordings that is."""
    data = shutil.copytree(voices_folder, here / "data")
    (data / "test/test0/1.wav").write_bytes(b"nothing")
    people = [f"test{n}" for n in range(3)]
    (here / "enrol.txt").write_text(
        "".join(f"m-{p} test/{p}/0.wav test/{p}/1.wav\n" for p in people)
    )
    (here / "list.txt").write_text(
        "".join(f"{int(p == q)} m-{p} test/{q}/2.wav\n" for p in people for q in people)
    )
    arguments = command(run, data, "--enrolment", "enrol.txt", trials="list.txt")
    assert evaluate.main([*arguments, "--output_folder", "out"]) == 0
    results = results_in(here / "out")
    assert results["n_left_out"] == 3
    assert results["systems"]["cosine"]["n_target"] == 2
