"""The benchmark of the preparation of a large corpus, on a small one."""

from tests.programs import benchmark


def test_a_small_run_fills_the_table(tmp_path):
    benchmark("preparation", tmp_path, "--entries", "1200")
    folder = tmp_path / "results" / "benchmarks" / "preparation"
    lines = (folder / "preparation.md").read_text().splitlines()
    assert lines[2].startswith("| 1,200 | ")
    assert lines[2].count(" s of CPU") == 2
