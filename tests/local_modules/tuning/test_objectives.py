"""What trials are judged by."""

from local_modules.tuning.objectives import OBJECTIVES, objective_value


def test_each_objective_is_the_metric_of_its_name():
    expected = {"eer": 0.1, "min_dcf": 0.4, "n_parameters": 7.0, "train_seconds": 3.5}
    metrics = {
        "valid": {"eer": 0.1, "min_dcf": 0.4},
        "test": {"eer": 0.9, "min_dcf": 0.9},
        "n_parameters": 7,
        "train_seconds": 3.5,
    }
    assert {name: objective_value(metrics, name) for name in OBJECTIVES} == expected
