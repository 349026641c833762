"""Counts that nothing can be measured with."""

import pytest

from benchmarks import (
    accuracy,
    classes,
    data,
    inference,
    preparation,
    scoring,
    throughput,
    tuning,
)


@pytest.mark.parametrize(
    ("program", "option"),
    [
        (accuracy, "seeds"),
        (classes, "steps"),
        (data, "rounds"),
        (inference, "start_rounds"),
        (preparation, "entries"),
        (scoring, "trials"),
        (throughput, "batch_size"),
        (tuning, "again"),
    ],
)
def test_nothing_to_measure_is_one_line(program, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert program.main([f"--{option}", "0"]) == 2
    name = program.__name__.replace(".", "/")
    expected = f"{name}.py: --{option} 0: has to be above 0\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())
