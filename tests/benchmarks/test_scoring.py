"""The benchmark of error rates and score normalisation, on few trials."""

from tests.programs import benchmark


def test_a_small_run_fills_the_tables(tmp_path):
    options = ["--trials", "300", "600", "--files", "20", "--cohort", "30"]
    options += ["--list", "200", "40", "--seconds", "0"]
    benchmark("scoring", tmp_path, *options)
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
