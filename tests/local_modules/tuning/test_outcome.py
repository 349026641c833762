"""What came of a study, in words and in its table."""

import csv

import pytest
from optuna.trial import TrialState, create_trial

from local_modules.tuning.outcome import best_trial, trial_line, write_trial_table
from local_modules.tuning.storage import open_study
from local_modules.tuning.study import EPOCHS, SLOT, begin_attempt, put_back


def test_a_trial_takes_the_time_of_all_its_attempts(tmp_path):
    """Of one put back, Optuna tells when the last began."""
    study = open_study(None, tmp_path, "s", 1)
    trial = study.ask()
    begin_attempt(study, trial)
    study.tell(trial, state=TrialState.FAIL)
    put_back(study, study.trials[0])
    trial = study.ask()
    begin_attempt(study, trial)
    trial.set_user_attr(EPOCHS, [{"seconds": 600.0}])
    study.tell(trial, 0.25)
    told = trial_line(study.trials[1], ("eer",))
    assert told.startswith("trial 0: EER 25.00 %; ") and told.endswith("; 10.0 min")
    write_trial_table(study, ("eer",), tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["seconds"] == "600.0"


def test_a_trial_may_have_taken_no_time():
    """By a clock that was too coarse, or was set back."""
    trial = create_trial(value=0.25, user_attrs={SLOT: 0})
    assert trial.datetime_start == trial.datetime_complete
    assert trial_line(trial, ("eer",)).endswith("; 0.0 min")


@pytest.fixture
def study(tmp_path):
    """A trial that was pruned at a lower rate than the other ended with."""
    study = open_study(None, tmp_path, "s", 1)
    for rate, state in ((0.05, TrialState.PRUNED), (0.25, TrialState.COMPLETE)):
        trial = study.ask()
        begin_attempt(study, trial)
        row = {"seconds": 60.0, "budget_used": 0.3, "valid_eer": rate}
        trial.set_user_attr(EPOCHS, [{**row, "budget_used": 0.1, "valid_eer": 1}, row])
        trial.report(rate, 3)
        is_complete = state == TrialState.COMPLETE
        study.tell(trial, rate if is_complete else None, state=state)
    return study


def test_the_best_trial_is_a_complete_one(study):
    assert best_trial(study).values == [0.25]


def test_a_pruned_trial_shows_what_it_had_reached(study, tmp_path):
    told = trial_line(study.trials[0], ("eer",))
    assert told.startswith("trial 0: pruned: EER 5.00 % after 30 % of its budget")
    write_trial_table(study, ("eer",), tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["eer"] for row in rows] == ["0.05", "0.25"]
    assert [row["state"] for row in rows] == ["pruned", "complete"]
