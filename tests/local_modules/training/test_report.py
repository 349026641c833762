"""What a run shows: the log, TensorBoard's events and the pictures, read back."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from local_modules.training import report
from local_modules.training.history import RunHistory
from local_modules.training.report import RunReporter, draw_plots, last_screen, log_line

PICTURES = ["loss", "accuracy", "learning_rate", "eer"]


def row(epoch, loss=None):
    return {
        "epoch": epoch,
        "train_loss": 10.0 / epoch if loss is None else loss,
        "train_accuracy": 1 - 0.9 / epoch,
        "learning_rate": 1e-3 / epoch,
        "margin": 0.1,
        "valid_eer": 0.2 / epoch,
        "valid_min_dcf": 0.5,
        "seconds": 60.0 * epoch,
    }


def events(folder):
    """What TensorBoard shows: values by name and epoch."""
    accumulator = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def expected_events(rows):
    return {
        name: [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows]
        for name in rows[0]
        if name != "epoch"
    }


def log_lines(folder):
    return (folder / "train_log.txt").read_text(encoding="utf-8").splitlines()


def next_second():
    """TensorBoard sorts the files of a folder by the second they were begun in."""
    time.sleep(1.0 - time.time() % 1.0)


def test_each_epoch_once(tmp_path, capsys):
    reporter = RunReporter(tmp_path)
    rows = []
    for epoch in (1, 2, 3):
        rows.append(row(epoch))
        reporter.report(rows, best_epoch=min(epoch, 2))
    assert log_lines(tmp_path) == [log_line(r) for r in rows]
    assert events(tmp_path) == expected_events(rows)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        log_line(row(1)) + "  (best)",
        log_line(row(2)) + "  (best)",
        log_line(row(3)),
    ]


def test_epoch_trained_again_after_a_kill(tmp_path):
    """Killed after the report of epoch 3 and before its checkpoint: epoch 3 comes
    again, with other figures."""
    first = RunReporter(tmp_path)
    rows = [row(1), row(2), row(3, loss=99.0)]
    for n in (1, 2, 3):
        first.report(rows[:n], best_epoch=1)
    next_second()
    second = RunReporter(tmp_path)
    rows = [row(1), row(2), row(3), row(4)]
    second.report(rows[:3], best_epoch=1)
    assert events(tmp_path) == expected_events(rows[:3])
    second.report(rows, best_epoch=1)
    assert log_lines(tmp_path) == [log_line(r) for r in rows]
    assert events(tmp_path) == expected_events(rows)


def test_epoch_that_a_kill_kept_from_the_report(tmp_path):
    """Killed after the checkpoint of epoch 2 and before its report."""
    RunReporter(tmp_path).report([row(1)], best_epoch=1)
    next_second()
    rows = [row(1), row(2), row(3)]
    RunReporter(tmp_path).report(rows, best_epoch=3)
    assert log_lines(tmp_path) == [log_line(r) for r in rows]
    assert events(tmp_path) == expected_events(rows)


def is_picture(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 300
        # Something is drawn: neither blank nor of one colour.
        assert np.ptp(np.asarray(image.convert("L"))) > 200
    return True


def test_curves_once_a_minute(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    reporter = RunReporter(tmp_path)
    rows, drawn = [], []
    for epoch, seconds in enumerate((59, 61, 119, 122), start=1):
        clock[0] = 1000.0 + seconds
        rows.append(row(epoch))
        reporter.report(rows, best_epoch=epoch)
        files = (tmp_path / "plots").glob("*.png")
        drawn.append({path.stem: path.stat().st_mtime_ns for path in files})
    assert [sorted(files) for files in drawn] == [[]] + 3 * [sorted(PICTURES)]
    assert drawn[1] == drawn[2]
    assert all(drawn[3][name] > drawn[2][name] for name in PICTURES)


@pytest.fixture
def finished():
    history = RunHistory()
    for epoch in (1, 2, 3):
        history.end_epoch(row(epoch))
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for split in ("valid", "test"):
        target = 0.6 + 0.2 * torch.randn(50, generator=generator)
        nontarget = 0.2 * torch.randn(80, generator=generator)
        metrics = {
            "eer": 0.0625,
            "eer_threshold": {"valid": 0.3125, "test": 0.4375}[split],
            "min_dcf": 0.5,
            "n_target": 50,
            "n_nontarget": 80,
        }
        scores[split] = metrics, target, nontarget
    return history, scores


def test_all_pictures_of_a_finished_run(tmp_path, finished, figures):
    folder = tmp_path / "run" / "plots"
    draw_plots(folder, *finished)
    names = {path.name for path in folder.iterdir()}
    expected = {f"{name}.png" for name in [*PICTURES, "scores", "det", "overview"]}
    assert names == expected
    assert all(is_picture(folder / name) for name in names)
    # Of the test trials, decided as the validation trials have it.
    title = "Test trials, threshold chosen on the validation trials"
    (drawn,) = (f for f in figures if f.axes[0].get_title(loc="left") == title)
    assert list(drawn.axes[0].lines[0].get_xdata()) == [0.3125, 0.3125]
    _, target, nontarget = finished[1]["test"]
    accepted, rejected, _ = drawn.axes[0].get_legend().get_texts()
    far, frr = (nontarget >= 0.3125), (target < 0.3125)
    for text, wrong in ((accepted, far), (rejected, frr)):
        assert f", {100 * wrong.float().mean():.2f} % " in text.get_text()


def test_last_screen_says_where_and_how_good(tmp_path, finished):
    _, scores = finished
    metrics = {split: result[0] for split, result in scores.items()} | {
        "train": {"loss": 1.0, "accuracy": 0.875},
        "best_epoch": 3,
        "epochs": 4,
        "train_seconds": 90.0,
    }
    text = last_screen(tmp_path, metrics)
    for part in ("6.25 %", "0.3125", "87.50 %", "best epoch 3 of 4", "1.5 minutes"):
        assert part in text
    assert str(tmp_path / "plots") in text
    # The lines of use can be pasted as they are.
    code = text.partition("Use it:\n")[2]
    compile("\n".join(line.strip() for line in code.splitlines()), "use", "exec")
    assert repr(str(tmp_path / "model")) in code
