"""The benchmark of error rates and score normalisation, on few trials."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_run_fills_the_tables(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "scoring.py")]
        + ["--trials", "300", "600", "--files", "20", "--cohort", "30"]
        + ["--list", "200", "40", "--seconds", "0"],
        cwd=tmp_path,
        check=True,
        timeout=300,
    )
    folder = tmp_path / "results" / "benchmarks" / "scoring"
    lines = (folder / "scoring.md").read_text().splitlines()
    assert lines[0] == "| trials | 300 | 600 |"
    assert [line.split(" | ")[0] for line in lines[2:6]] == [
        "| ours: EER, minDCF, Cllr",
        "| scikit-learn: ROC",
        "| SpeechBrain: EER",
        "| SpeechBrain: minDCF",
    ]
    for line in lines[2:6]:
        assert line.count(" s, ") == 1 and line.endswith("MiB | left out |")
    assert "SpeechBrain's recipe, as many (from 20 of them)" in lines[-2]
    assert "ours, 200 trials of 40 files" in lines[-1]
