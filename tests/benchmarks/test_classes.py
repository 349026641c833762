"""The benchmark of classifiers of many speakers, on few."""

import pytest

from benchmarks.classes import MOST, extrapolated
from tests.programs import benchmark


def test_a_small_run_fills_the_table(tmp_path):
    options = ["--classes", "50", "3000", "90", "--batch", "4", "--emb_dim", "8"]
    options += ["--steps", "1", "--gib", "0.001"]
    benchmark("classes", tmp_path, *options)
    text = (tmp_path / "results" / "benchmarks" / "classes" / "classes.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "| speakers, 2 ranks | whole | split | split, 10% drawn |"
    cells = [line.strip("| ").split(" | ") for line in lines[2:6]]
    assert [row[0] for row in cells] == [
        "50",
        "90",
        "3,000",
        "10,000,000, extrapolated",
    ]
    assert cells[2][1] == "left out"  # of twice as many rows as the split one
    measured = [cell for row in cells for cell in row[1:] if cell != "left out"]
    assert len(measured) == 11
    assert all(" MiB, " in cell and cell.endswith(" s") for cell in measured)
    assert [line.partition(":")[0] for line in lines[7:]] == [
        "- whole",
        "- split",
        "- split, 10% drawn",
    ]


def test_extrapolation_goes_on_in_a_straight_line():
    measured = {10: (50.0, 9.0), 1000: (3.0, 2.0), 2000: (5.0, 2.5)}
    found, _ = extrapolated(measured)
    n = MOST - 2000
    assert found == pytest.approx((5 + 2 * n / 1000, 2.5 + 0.5 * n / 1000))
