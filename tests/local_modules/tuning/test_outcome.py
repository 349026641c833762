"""What came of a study, in words and in its table."""

import csv

from optuna.trial import TrialState

from local_modules.tuning.outcome import trial_line, write_trials
from local_modules.tuning.storage import open_study
from local_modules.tuning.study import EPOCHS, begin_attempt, put_back


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
    write_trials(study, ("eer",), tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["seconds"] == "600.0"
