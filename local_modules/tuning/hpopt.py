"""Training under a driver other than tune.py: SpeechBrain's `--hpopt` and
`--hpopt_mode`.

SpeechBrain's own context reports even if not asked to, and on every rank; only its
reporters are used here.
"""

import os
from collections.abc import Mapping

from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils import hpopt
from speechbrain.utils.distributed import ddp_broadcast, if_main_process

from local_modules.errors import InputError, one_line

MODES = ("optuna", "orion", "generic")
OPTUNA_VARIABLES = ("OPTUNA_STORAGE", "OPTUNA_STUDY_NAME", "OPTUNA_TRIAL_NUMBER")
MISSING = {
    "optuna": f"the driver has to set {', '.join(OPTUNA_VARIABLES)}",
    "orion": "needs Orion (pip install orion==0.2.3, Python 3.11 or older) and to be "
    "started by `orion hunt`",
}


@hpopt.hpopt_mode("optuna")
class OptunaReporter(hpopt.HyperparameterOptimizationReporter):
    """Reports to a trial of an Optuna study, which the driver has begun and names in
    the environment variables OPTUNA_STORAGE, OPTUNA_STUDY_NAME and
    OPTUNA_TRIAL_NUMBER.

    Arguments
    ---------
    objective_key : str
        Key of the objective in the result.
    """

    @property
    def is_available(self) -> bool:
        """Whether the environment names a trial."""
        return all(os.getenv(name) for name in OPTUNA_VARIABLES)

    @property
    def trial_id(self) -> str:
        """Name of the trial's folder."""
        return "-".join(os.environ[name] for name in OPTUNA_VARIABLES[1:])

    def check(self) -> None:
        """Finds the trial.

        Raises
        ------
        InputError
            There is no such trial, it is not under way, or its study has several
            objectives.
        """
        *_, name, number = (os.environ[name] for name in OPTUNA_VARIABLES)
        try:
            study = self._load_study()
            trial = study.trials[int(number)]
            if trial.number != int(number):
                raise IndexError("numbers count from 0")
        except Exception as error:
            raise InputError(
                f"{', '.join(OPTUNA_VARIABLES)}: name no trial: {one_line(error)}"
            ) from error
        if trial.state.name != "RUNNING":
            raise InputError(
                f"OPTUNA_TRIAL_NUMBER {number}: is {trial.state.name} in study {name}; "
                "the driver has to begin a new one with study.ask()"
            )
        if len(study.directions) != 1:
            raise InputError(
                f"OPTUNA_STUDY_NAME {name}: has {len(study.directions)} objectives; "
                "it has to have one, the EER"
            )

    def report_objective(self, result: Mapping) -> None:
        """Ends the trial with its objective."""
        number = int(os.environ["OPTUNA_TRIAL_NUMBER"])
        self._load_study().tell(number, result[self.objective_key])

    def _load_study(self):
        import optuna  # takes a second, and other trainings don't need it

        storage, name, _ = (os.environ[name] for name in OPTUNA_VARIABLES)
        return optuna.load_study(study_name=name, storage=storage)


class Driven:
    """A training whose settings come from a driver and whose result goes back to it.

    Arguments
    ---------
    overrides : dict
        Overrides of the command line; `hpopt` and `hpopt_mode` are removed.

    Raises
    ------
    InputError
        The mode is unknown, its library isn't installed, or the driver's environment
        variables are missing or name no trial; the file can't be read.
    """

    def __init__(self, overrides: dict):
        hpopt_file = overrides.pop("hpopt")
        mode = overrides.pop("hpopt_mode", "generic")
        if mode not in MODES:
            raise InputError(f"--hpopt_mode {mode}: choose from {', '.join(MODES)}")
        reporter = hpopt.get_reporter(mode, objective_key="eer")
        is_generic = isinstance(
            reporter, hpopt.GenericHyperparameterOptimizationReporter
        )
        if is_generic and mode != "generic":
            raise InputError(f"--hpopt_mode {mode}: {MISSING[mode]}")
        if isinstance(reporter, OptunaReporter):
            reporter.check()
        self.reporter = reporter
        # The generic reporter's is the time of day, which differs between ranks.
        trial_id = ddp_broadcast(reporter.trial_id)
        self.overrides = {**_read(hpopt_file, trial_id), **overrides}

    def report(self, metrics: Mapping) -> None:
        """Gives the driver the rates on `valid`."""
        if if_main_process():
            self.reporter.report_objective(dict(metrics["valid"]))


def _read(hpopt_file, trial_id: str) -> dict:
    """The settings of a trial; none for `--hpopt True`."""
    if hpopt_file is True:
        return {}
    if not isinstance(hpopt_file, str):
        raise InputError(f"--hpopt {hpopt_file}: has to be True or a file")
    try:
        with open(hpopt_file, encoding="utf-8") as file:
            settings = load_hyperpyyaml(file, {"trial_id": trial_id})
    except OSError as error:
        raise InputError(f"--hpopt {hpopt_file}: {error.strerror}") from None
    except Exception as error:
        raise InputError(f"{hpopt_file}: {one_line(error)}") from error
    return {key: value for key, value in settings.items() if key != "trial_id"}
