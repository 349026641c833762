"""The benchmark of the preparation of a large corpus, on a small one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_run_fills_the_table(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "preparation.py")]
        + ["--entries", "1200"],
        cwd=tmp_path,
        check=True,
        timeout=300,
    )
    folder = tmp_path / "results" / "benchmarks" / "preparation"
    lines = (folder / "preparation.md").read_text().splitlines()
    assert lines[2].startswith("| 1,200 | ")
    assert lines[2].count(" s of CPU") == 2
