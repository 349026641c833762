"""Parts of the trials, and the table of metrics."""

import numpy as np
import pytest

from local_modules.errors import InputError
from local_modules.evaluation.confidence import bootstrap
from local_modules.evaluation.results import (
    Scored,
    groups_by_metadata,
    groups_by_seconds,
    measure,
    measure_groups,
    measure_systems,
    read_metadata,
)
from local_modules.metrics import (
    act_dcf,
    cllr,
    convex_hull_eer,
    equal_error_rate,
    far_frr,
    min_cllr,
    min_dcf,
)


def scored(n=400, are_llrs=True, seed=0):
    rng = np.random.default_rng(seed)
    enrol, test = rng.integers(0, 20, (2, n))
    labels = enrol == test
    labels[:50], test[:50] = True, enrol[:50]
    return Scored(rng.normal(np.where(labels, 2, -2), 2), labels, enrol, test, are_llrs)


def test_measure_is_what_the_metrics_say():
    trials = scored()
    found = measure(trials, trials.replicates(50))
    pair = trials.pair
    assert (found["eer"], found["eer_threshold"]) == equal_error_rate(*pair)
    assert found["min_dcf_0.05"] == min_dcf(*pair, 0.05)[0]
    assert found["eer_convex_hull"] == convex_hull_eer(*pair) < 0.5
    assert found["min_cllr"] == min_cllr(*pair) < 1
    assert found["act_dcf_0.01"] == act_dcf(*pair, 0.01)
    assert found["cllr"] == cllr(*pair)
    assert found["threshold_0.05"] == pytest.approx(np.log(19))
    assert (found["far_0.05"], found["frr_0.05"]) == far_frr(*pair, np.log(19))
    assert found["n_target"] + found["n_nontarget"] == 400
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high


def test_without_an_error_speakers_are_counted_and_not_trials():
    """Eight speakers with three target trials each, and four of them with three
    non-target trials: half of the others may be confused."""
    speaker = np.arange(8).repeat(3)
    labels = np.repeat([True, False], [24, 6])
    enrol, test = np.r_[speaker, speaker[:6]], np.r_[speaker, speaker[:6] + 2]
    trials = Scored(labels.astype(float), labels, enrol, test)
    intervals = measure(trials, trials.replicates(20))["intervals"]
    low, high = intervals["eer"]
    assert (low, intervals["min_dcf_0.01"]) == (0, None)
    assert (1 - high) ** 4 == pytest.approx(0.05)


def test_systems_are_compared_with_the_one_named():
    one, other = scored(seed=0), scored(seed=0)
    worse = Scored(-one.scores, *list(vars(one).values())[1:])
    systems = {"a": one, "b": other, "c": worse}
    found = measure_systems(systems, {"a": "a", "b": "a", "c": "b"}, 100)
    assert "p_value" not in found["a"]
    assert found["b"]["p_value"] == 1.0 and found["b"]["compared_with"] == "a"
    assert found["c"]["p_value"] < 0.05 and found["c"]["compared_with"] == "b"


def test_scores_that_are_no_ratios_have_no_actual_cost():
    trials = scored(are_llrs=False)
    found = measure(trials, trials.replicates(5))
    assert not {"cllr", "act_dcf_0.01"} & set(found)
    assert "cllr" not in found["intervals"]


def test_groups_by_metadata():
    metadata = {
        "a": {"sex": "f", "who": "ann", "same": "x"},
        "b": {"sex": "f", "who": "bea", "same": "x"},
        "c": {"sex": "m", "who": "cal", "same": "x"},
    }
    enrol = [["a"], ["a", "b"], ["c"], ["a", "c"], ["d"]]
    test = ["b", "a", "c", "a", "d"]
    found = groups_by_metadata(metadata, enrol, test)
    assert {v: r.tolist() for v, r in found["sex"].items()} == {
        "f": [0, 1],
        "m": [2],
        "different": [3],
        "?": [4],
    }


def test_columns_with_one_value_or_with_many_say_nothing(caplog):
    paths = [f"{n}" for n in range(40)]
    metadata = {p: {"one": "x", "many": p, "two": str(int(p) % 2)} for p in paths}
    found = groups_by_metadata(metadata, [[p] for p in paths], paths)
    assert list(found) == ["two"]
    (record,) = caplog.records
    assert "many has 40 values, more than 20" in record.message


def test_thirds_by_duration_hold_every_trial_once():
    seconds = np.random.default_rng(1).uniform(1, 9, 301)
    parts = groups_by_seconds(seconds)
    assert len(parts) == 3
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(301))
    assert all(90 < len(rows) < 110 for rows in parts.values())


def test_parts_of_one_kind_are_left_out():
    trials = scored()
    groups = {"all": np.arange(400), "targets": np.flatnonzero(trials.labels)}
    found = measure_groups(trials, groups, 5)
    assert list(found) == ["all"]
    assert found["all"]["eer"] == equal_error_rate(*trials.pair)[0]


def test_metadata_is_read_by_path(tmp_path):
    (tmp_path / "m.tsv").write_text("path\tsex\na b.wav\tf\n")
    assert read_metadata(tmp_path / "m.tsv") == {"a b.wav": {"sex": "f"}}
    (tmp_path / "m.csv").write_text("sex,path\nm,c.wav\n")
    assert read_metadata(tmp_path / "m.csv") == {"c.wav": {"sex": "m"}}
    (tmp_path / "bad.csv").write_text("file,sex\nc.wav,m\n")
    with pytest.raises(InputError, match="no column path; it has file, sex"):
        read_metadata(tmp_path / "bad.csv")
    with pytest.raises(InputError, match="can't be read"):
        read_metadata(tmp_path / "none.csv")


@pytest.mark.parametrize(("row", "what"), [("b,f,1", "more"), ("b", "fewer")])
def test_metadata_with_a_ragged_row_is_one_line(row, what, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(f"path,sex\na,m\n{row}\n")
    with pytest.raises(InputError) as error:
        read_metadata(path)
    assert str(error.value) == f"{path}:3: has {what} fields than the first line"


def test_a_part_is_some_of_the_trials_and_of_the_same_kind():
    trials = scored(are_llrs=True)
    rows = np.arange(0, 400, 3)
    part = trials.part(rows)
    assert part.are_llrs
    for name in ("scores", "labels", "enrol_speakers", "test_speakers"):
        assert np.array_equal(getattr(part, name), getattr(trials, name)[rows])


def test_metadata_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "known.csv"
    path.write_text("\ufeffpath,sex\na.wav,f\n", encoding="utf-8")
    assert read_metadata(path) == {"a.wav": {"sex": "f"}}


def test_replicates_draw_the_speakers_of_both_sides():
    trials = scored(are_llrs=False)
    sides = trials.enrol_speakers, trials.test_speakers
    expected = bootstrap(trials.scores, trials.labels, sides, 30, [0.01])
    np.testing.assert_array_equal(trials.replicates(30)["eer"], expected["eer"])
