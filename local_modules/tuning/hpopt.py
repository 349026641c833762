"""Training under somebody else's driver: SpeechBrain's `--hpopt` and `--hpopt_mode`.

SpeechBrain's own context reports also where nothing was asked for, and on every rank;
here its reporters are used, and nothing else of it.
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
    """Reports into a trial of an Optuna study, which its driver has asked for and names
    by the environment variables OPTUNA_STORAGE, OPTUNA_STUDY_NAME and
    OPTUNA_TRIAL_NUMBER.

    Arguments
    ---------
    objective_key : str
        Key of the result that is the objective.
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
                "the driver has to ask for one"
            )
        if len(study.directions) != 1:
            raise InputError(
                f"OPTUNA_STUDY_NAME {name}: has {len(study.directions)} objectives; "
                "the EER is one"
            )

    def report_objective(self, result: Mapping) -> None:
        """Ends the trial with its objective."""
        number = int(os.environ["OPTUNA_TRIAL_NUMBER"])
        self._load_study().tell(number, result[self.objective_key])

    def _load_study(self):
        import optuna  # takes a second that other trainings needn't spend

        storage, name, _ = (os.environ[name] for name in OPTUNA_VARIABLES)
        return optuna.load_study(study_name=name, storage=storage)


class Driven:
    """A training whose settings come from a driver and whose result goes back to it.

    Arguments
    ---------
    overrides : dict
        Of the command line; `hpopt` and `hpopt_mode` are taken out.

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
            raise InputError(f"--hpopt_mode {mode}: there are {', '.join(MODES)}")
        reporter = hpopt.get_reporter(mode, objective_key="eer")
        is_generic = isinstance(
            reporter, hpopt.GenericHyperparameterOptimizationReporter
        )
        if is_generic and mode != "generic":
            raise InputError(f"--hpopt_mode {mode}: {MISSING[mode]}")
        if isinstance(reporter, OptunaReporter):
            reporter.check()
        self.reporter = reporter
        # The generic reporter's is the time of the day, another one on each rank.
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
