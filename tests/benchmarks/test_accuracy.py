"""The benchmark of accuracy: two small rows on a tiny corpus, and what it computes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evaluate
from benchmarks import accuracy
from benchmarks.accuracy_plan import row_values
from benchmarks.accuracy_table import summarise
from local_modules.config import check_overrides
from local_modules.evaluation.confidence import interval

TABLE = """
tiny:
    title: Tiny Conformer
    recipe: hparams/conformer.yaml
    values: {d_model: 16, n_blocks: 1, n_heads: 2, d_ffn: 16, emb_dim: 16}
mfcc_lda:
    title: No network
    program: benchmarks/mfcc_lda.py
    recipe: benchmarks/mfcc_lda.yaml
"""


@pytest.fixture(scope="module")
def measured(voices_folder, tmp_path_factory):
    """Where the benchmark has run, and the command line that it ran with."""
    here = tmp_path_factory.mktemp("accuracy")
    (here / "table.yaml").write_text(TABLE)
    paths = [p.relative_to(voices_folder) for p in voices_folder.glob("test/*/*.wav")]
    sexes = {"test0": "f", "test1": "f", "test2": "m"}
    lines = [f"{path}\t{sexes[path.parent.name]}" for path in paths]
    (here / "sexes.tsv").write_text("\n".join(["path\tsex", *lines]))
    argv = ["--table", "table.yaml", "--minutes", "0.02", "--seeds", "1"]
    argv += ["--threads", "1", "--metadata", "sexes.tsv", "--by", "sex"]
    argv += ["--corpus", "folder", "--data_folder", str(voices_folder)]
    argv += ["--batch_size", "8", "--crop_seconds", "0.8", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert accuracy.main(argv) == 0
    return here, argv


@pytest.fixture
def there(measured, monkeypatch):
    """The benchmark's folder; the process is where its command was given."""
    monkeypatch.chdir(measured[0])
    return measured[0] / "results/benchmarks/accuracy/folder_0.02min"


def both(there):
    for name in ("tiny", "mfcc_lda"):
        yield (
            there / name / "1",
            json.loads((there / name / "1" / "result.json").read_text()),
        )


def test_rates_are_those_of_the_training(there):
    lines = (there / "accuracy.md").read_text().splitlines()
    for title, (folder, result) in zip(
        ("Tiny Conformer", "No network"), both(there), strict=True
    ):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert result["test"]["all"]["cosine/eer"] == pytest.approx(
            metrics["test"]["eer"], abs=1e-6
        )
        assert result["test"]["all"]["cosine/min_dcf"] == pytest.approx(
            metrics["test"]["min_dcf"], abs=1e-6
        )
        assert result["valid_eer"] == metrics["valid"]["eer"]
        # Only the two women have trials of both kinds.
        assert list(result["test"]) == ["all", "f"]
        (line,) = [line for line in lines if line.startswith(f"| {title}")][:1]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[8] == f"{100 * metrics['valid']['eer']:.2f}"
        replicates = 100 * np.load(folder / "replicates.npz")["all/cosine/eer"]
        ends = "{:.2f}, {:.2f}".format(*interval(replicates))
        # Without an error among the trials, resamples have none either.
        ends = ends if np.any(replicates > 1e-6) else "?"
        assert cells[9] == f"{100 * metrics['test']['eer']:.2f} [{ends}]"
    assert (there / "accuracy.png").read_bytes()[:4] == b"\x89PNG"


def test_calibrated_rates_are_those_of_an_evaluation(there, voices_folder):
    folder, result = next(both(there))
    trials = there / "manifests" / "test_trials.txt"
    argv = [folder / "model", "--trials", trials, "--data_folder", voices_folder]
    argv += ["--resamples", 10, "--output_folder", "evaluation"]
    assert evaluate.main([str(argument) for argument in argv]) == 0
    systems = json.loads(Path("evaluation/metrics.json").read_text())["systems"]
    for way in ("cosine", "calibrated"):
        assert result["test"]["all"][f"{way}/eer"] == pytest.approx(
            systems[way]["eer"], abs=1e-6
        )


def test_the_budget_is_in_minutes_and_the_same(there):
    (_, tiny), (_, lda) = both(there)
    # Ends with the step that uses it up, and its validation.
    assert 1.2 < tiny["train_seconds"] < 30
    assert tiny["values"]["train_time_limit_minutes"] == 0.02
    assert tiny["curve"][-1] == [tiny["train_seconds"], pytest.approx(0.25, abs=0.25)]
    assert tiny["passes"] * 48 == pytest.approx(
        tiny["utterances_per_second"] * tiny["train_seconds"]
    )
    assert lda["passes"] == 1 and len(lda["curve"]) == 1
    for result in (tiny, lda):
        assert result["usage"]["cpu_seconds"] > 1 and not result["usage"]["continued"]
        assert 0 < result["real_time_factor"] < 10
    # A key goes to the recipe that has it.
    assert tiny["values"]["crop_seconds"] == 0.8
    assert "crop_seconds" not in lda["values"]


def test_the_same_command_continues_and_trains_nothing_again(measured, there):
    files = [there / name / "1" / "output.txt" for name in ("tiny", "mfcc_lda")]
    stamps = [file.stat().st_mtime_ns for file in files]
    before = (there / "accuracy.md").read_text()
    (there / "accuracy.md").unlink()
    assert accuracy.main(measured[1]) == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert (there / "accuracy.md").read_text() == before


def test_rows_may_have_different_numbers_of_seeds(measured, there):
    first, second = there / "tiny" / "1", there / "tiny" / "2"
    shutil.copytree(first, second)
    path = second / "result.json"
    result = json.loads(path.read_text())
    result["seed"] = result["values"]["seed"] = 2
    result["values"]["output_folder"] = str(second.relative_to(measured[0]))
    path.write_text(json.dumps(result))
    try:
        assert accuracy.main(measured[1]) == 0
    finally:
        shutil.rmtree(second)
    table = (there / "accuracy.md").read_text().split("\n\n")[1]
    titled = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    assert [(row[0].strip(), row[7].strip()) for row in titled] == [
        ("Tiny Conformer", "2"),
        ("No network", "1"),
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rows", "tinny"], ["--rows tinny", "nearest are tiny"]),
        (["--colour", "red"], ["--colour", "no such key"]),
        (["--lr", "fast"], ["--lr fast", "a number"]),
        (["--seed", "3"], ["--seed", "leave it out"]),
        (["--lr", "0.1"], ["was begun with lr None, not 0.1", "--name"]),
        (["--by", "age"], ["--by age", "sexes.tsv", "sex"]),
        (["--seeds", "0"], ["--seeds 0", "above 0"]),
    ],
)
def test_mistakes_are_one_line(measured, there, capsys, more, words):
    name = ["--name", "other"] if "--by" in more else []
    assert accuracy.main([*measured[1], *more, *name]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("benchmarks/accuracy.py: ")
    for word in words:
        assert word in error


def test_rows_of_other_trials_are_not_put_into_one_table(measured, there, capsys):
    trials = there / "manifests" / "test_trials.txt"
    text = trials.read_text()
    trials.write_text("".join(reversed(text.splitlines(keepends=True))))
    try:
        assert accuracy.main(measured[1]) == 2
    finally:
        trials.write_text(text)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{trials.name}: has changed since" in error and "--name" in error


@pytest.mark.parametrize("changed", ["row", "recipe"])
def test_a_changed_row_is_not_passed_off_as_the_old_one(
    changed, measured, there, capsys, tmp_path
):
    table = measured[0] / "table.yaml"
    text = table.read_text()
    if changed == "row":
        table.write_text(text.replace("d_ffn: 16", "d_ffn: 24"))
    else:
        recipe = (accuracy.ROOT / "hparams" / "conformer.yaml").read_text()
        other = tmp_path / "conformer.yaml"
        other.write_text(recipe.replace("weight_decay: 0.2", "weight_decay: 0.3"))
        table.write_text(text.replace("hparams/conformer.yaml", str(other)))
    try:
        assert table.read_text() != text
        assert accuracy.main(measured[1]) == 2
    finally:
        table.write_text(text)
    assert "give the row another name" in capsys.readouterr().err


def test_the_rows_of_the_table_are_recipes_with_these_keys():
    rows = accuracy.read_rows(str(accuracy.ROOT / "benchmarks" / "accuracy.yaml"))
    assert next(iter(rows)) == "conformer"  # that the others are compared with
    for row in rows.values():
        assert (accuracy.ROOT / row.program).exists()
        assert re.match(r"^[\w,() -]+$", row.title)


def test_every_recipe_takes_what_the_benchmark_tells_it(voices_folder, there):
    argv = ["--minutes", "0.5", "--name", "all_rows"]
    argv += ["--corpus", "folder", "--data_folder", str(voices_folder)]
    options = accuracy.parse(argv)
    rows = accuracy.read_rows(options.table)
    plan = accuracy.make_plan(options, rows)
    assert rows.keys() > {"conformer", "conformer_speech", "ecapa_tdnn", "resnet"}
    for row in rows.values():
        told = row_values(row, 1, plan)
        assert told["data_folder"] == str(voices_folder)
        check_overrides(row.recipe_file, told)


def test_multiply_adds_by_hand():
    conv = nn.Conv1d(6, 4, 3, groups=2)
    layers = nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 8, 5), nn.ReLU())
    by_hand = 8 * 4 * (3 * 6 // 2) + 4 * 8 * 5
    assert accuracy.multiply_adds(layers, torch.randn(1, 6, 10)) == by_hand


def test_multiply_adds_of_attention():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    # Two heads, seven frames: scores and their sums, 3 wide.
    x = torch.randn(1, 2, 7, 3)
    assert accuracy.multiply_adds(Attention(), x) == 2 * 2 * 7 * 7 * 3


def test_seeds_are_averaged_before_the_interval_is_taken(tmp_path):
    """The mean of a good and a bad seed that vary oppositely is sure."""
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=500)
    results = {}
    for seed, (eer, drawn) in enumerate(((0.10, 0.10 + noise), (0.14, 0.14 - noise))):
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        np.savez(folder / "replicates.npz", **{"all/cosine/eer": drawn})
        results[folder] = {"test": {"all": {"cosine/eer": eer}}}
    summary = summarise(results)
    # The deviation of two values is their distance over the root of two.
    assert summary.cell("all", "cosine/eer", 100, ".1f") == "12.0 ± 2.8 [12.0, 12.0]"
