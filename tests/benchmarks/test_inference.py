"""The benchmark of a model in use, with little to do."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_run_fills_the_tables(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "inference.py")]
        + ["--seconds", "0.5", "1", "--threads", "1", "--rounds", "1"]
        + ["--start_rounds", "1", "--files", "3", "--voices", "500"],
        cwd=tmp_path,
        check=True,
        timeout=300,
    )
    folder = tmp_path / "results" / "benchmarks" / "inference"
    speed, start, many = (folder / "inference.md").read_text().split("\n\n")
    assert speed.startswith("| 1 thread | 0.5 s | 1 s |")
    for table in (speed, start):
        names = [line.split(" | ")[0] for line in table.splitlines()[2:]]
        assert names[:1] + names[-2:] == [
            "| ours",
            "| ours, ONNX",
            "| ours, ONNX int8",
        ]
        assert sum("SpeechBrain" in name for name in names) == 3
    assert all(line.count(" ms, ") == 2 for line in speed.splitlines()[2:])
    assert all(line.endswith(" MiB |") for line in start.splitlines()[2:])
    assert "`embed` on 3 files" in many and "the nearest 5 of 500" in many
