"""A study in its storage: its trials, the turns of its processes, and the recovery of
trials whose process was killed.

A trial that was interrupted or killed is put back: for Optuna it has failed, and a new,
waiting one continues with its parameters, its folder and its checkpoint. Trials are
counted by slot: the number that users see, and the folder's name.
"""

import contextlib
import itertools
import json
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from local_modules.errors import InputError
from local_modules.yaml_trees import differences

MAX_ATTEMPTS = 3
BEGINNING_SECONDS = 300  # within which a trial under way has set BEGUN

# User attributes of a trial.
SLOT = "slot"
REASON = "reason"  # why it failed; absent if its process was killed
SURPLUS = "the study had its trials"  # a reason
ATTEMPTS = "attempts"  # begun since it last finished an epoch
BEGUN = "begun"  # its own number, once under way; until then one put back has another's
EPOCHS = "epochs"  # rows of its finished epochs


def has_ended(trial: FrozenTrial) -> bool:
    """Whether a live trial will not continue. One that has failed without a reason is
    put back, unless its process was killed `MAX_ATTEMPTS` times within one epoch: the
    trial may be the cause."""
    if trial.state == TrialState.FAIL:
        attempts = trial.user_attrs.get(ATTEMPTS, 0)
        return REASON in trial.user_attrs or attempts >= MAX_ATTEMPTS
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def put_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues a failed trial again, unless it has ended."""
    if not has_ended(trial):
        with experimental():
            RetryHeartbeatStaleTrialCallback()(study, trial)


def begin_attempt(study: optuna.Study, trial: optuna.Trial) -> int | None:
    """Notes that a trial is under way, for the first time or again.

    Returns
    -------
    int | None
        Its slot; None for the second copy of a trial that two processes have put back
        at the same time.
    """
    numbers = {live.number: slot for slot, live in live_trials(study).items()}
    if trial.number not in numbers:
        return None
    known = trial.user_attrs
    n_epochs = len(known.get(EPOCHS, ()))
    is_stuck = n_epochs == known.get("begun_with")
    trial.set_user_attr(BEGUN, trial.number)
    trial.set_user_attr(ATTEMPTS, known.get(ATTEMPTS, 0) + 1 if is_stuck else 1)
    trial.set_user_attr("begun_with", n_epochs)
    trial.set_user_attr(SLOT, numbers[trial.number])
    return numbers[trial.number]


def forgive_attempt(trial: optuna.Trial) -> None:
    """Does not count an attempt that ends for a reason outside the trial."""
    trial.set_user_attr(ATTEMPTS, trial.user_attrs[ATTEMPTS] - 1)


def replaced_numbers(trials: Iterable[FrozenTrial]) -> set[int]:
    """Numbers of the trials that have been put back, and that others continue."""
    return {
        number
        for trial in trials
        for number in trial.system_attrs.get("retry_history", ())
    }


def _counts(trial: FrozenTrial, replaced: Collection[int]) -> bool:
    is_surplus = trial.user_attrs.get(REASON) == SURPLUS
    return trial.number not in replaced and not is_surplus


class WithoutReplaced:
    """A study as its pruner has to see it, without trials that have been put back:
    they would compete with their own continuation. Optuna's HyperbandPruner reads the
    storage directly, and still sees them.

    Arguments
    ---------
    study : optuna.Study
        The study, to which everything else is delegated.
    """

    def __init__(self, study: optuna.Study):
        self._study = study

    def __getattr__(self, name):
        return getattr(self._study, name)

    def get_trials(self, *args, **kwargs) -> list[FrozenTrial]:
        """As the study's, without those that have been put back or are surplus."""
        replaced = replaced_numbers(self._study.get_trials(deepcopy=False))
        trials = self._study.get_trials(*args, **kwargs)
        return [trial for trial in trials if _counts(trial, replaced)]


def live_trials(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The trial that counts in each slot, in the order of the slots.

    A trial gets the first free slot when it begins, and keeps it over any number of
    attempts; one that has not begun is listed in the slot it would get.
    """
    trials = study.get_trials(deepcopy=False)
    replaced = replaced_numbers(trials)
    live, new = {}, []
    for trial in trials:
        if not _counts(trial, replaced):
            continue
        if SLOT in trial.user_attrs:
            live.setdefault(
                trial.user_attrs[SLOT], trial
            )  # the first, if there are two
        else:
            new.append(trial)
    free = (number for number in itertools.count() if number not in live)
    live |= dict(zip(free, new, strict=False))
    return dict(sorted(live.items()))


def is_surplus(study: optuna.Study, trial: optuna.Trial, n_trials: int) -> bool:
    """Whether a trial just begun is one too many: machines that share only the storage
    may begin the last one at the same time, and a waiting one may be beyond an
    `n_trials` that was lowered."""
    live = list(live_trials(study).values())
    return trial.number not in {one.number for one in live[:n_trials]}


def claim(study: optuna.Study, attribute: str, settings: Mapping) -> None:
    """Stores the settings of a study after `check_claim`."""
    check_claim(study, attribute, settings)
    study.set_user_attr(attribute, settings)


def check_claim(study: optuna.Study, attribute: str, settings: Mapping) -> None:
    """Checks that a study was begun with these settings, or has none stored yet.

    Arguments
    ---------
    study : optuna.Study
        The study.
    attribute : str
        User attribute of the study that stores them.
    settings : mapping
        Values that JSON can hold, by name.

    Raises
    ------
    InputError
        The study was begun with other settings.
    """
    settings = json.loads(json.dumps(settings))
    earlier = study.user_attrs.get(attribute, settings)
    for name, before, now in differences(earlier, settings, ""):
        raise InputError(
            f"--study {study.study_name}: was begun with {name[1:]} {before}, not "
            f"{now}; continue it with its own settings, or choose another name"
        )


def enqueue_defaults(study: optuna.Study, defaults: Mapping) -> None:
    """Makes the recipe's own values the first trial."""
    if not study.get_trials(deepcopy=False):
        # Two machines may do so at the same time: with its slot, one of them counts.
        # As study.enqueue_trial does, and with a place outside GridSampler's grid,
        # because that sampler expects every trial to have one.
        attributes = {"fixed_params": dict(defaults), "grid_id": -1, "search_space": {}}
        study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                system_attrs=attributes,
                user_attrs={SLOT: 0},
            )
        )


class Turnstile:
    """Lets the processes of one machine into a study one at a time, and finds by locks
    the trials of a journal that have lost their process.

    Arguments
    ---------
    folder : Path
        The study's folder on this machine.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.turn = FileLock(folder / ".turn.lock")
        self._first_seen = {}  # monotonic seconds, by number of a trial not begun

    def trial_lock(self, number: int) -> FileLock:
        """The lock that the process of a slot holds; the system releases it however
        the process ends."""
        folder = self.folder / "trials" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock")

    def recover(self, study: optuna.Study) -> None:
        """Puts back the trials whose process is gone.

        In a database, that is those without a heartbeat; in a journal, those whose
        lock is free.
        """
        with self.turn:
            if is_journal(study):
                for trial in study.get_trials(states=(TrialState.RUNNING,)):
                    # Without a slot, it was killed during its turn.
                    number = trial.user_attrs.get(SLOT)
                    if number is None or self._is_free(number):
                        self._fail(study, trial)
            else:
                with experimental():
                    optuna.storages.fail_stale_trials(study)
                # One killed before its first heartbeat never gets stale.
                # Machines' clocks differ: what counts is how long it is seen here.
                now = time.monotonic()
                for trial in study.get_trials(states=(TrialState.RUNNING,)):
                    if trial.user_attrs.get(BEGUN) == trial.number:
                        continue
                    seen = now - self._first_seen.setdefault(trial.number, now)
                    if seen > BEGINNING_SECONDS:
                        self._fail(study, trial)
            # Also those failed by a process that was killed before it put them back.
            for trial in live_trials(study).values():
                if trial.state == TrialState.FAIL and not has_ended(trial):
                    put_back(study, trial)

    def _is_free(self, number: int) -> bool:
        try:
            with self.trial_lock(number).acquire(blocking=False):
                return True
        except Timeout:
            return False

    @staticmethod
    def _fail(study: optuna.Study, trial: FrozenTrial) -> None:
        # It may have finished meanwhile. Not by study.tell, which would call the
        # sampler: that is for the process in which the trial ran.
        with contextlib.suppress(UpdateFinishedTrialError):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def is_journal(study: optuna.Study) -> bool:
    """Whether the study lies in a journal file rather than in a database."""
    return isinstance(study._storage, JournalStorage)


def failure_reason(trial: FrozenTrial) -> str:
    """Why a failed trial failed, in one line."""
    killed = f"its process was killed {trial.user_attrs.get(ATTEMPTS, 0)} times"
    return trial.user_attrs.get(REASON, killed)


@contextlib.contextmanager
def experimental() -> Iterator[None]:
    """Ignores Optuna's warnings that heartbeats are experimental; the version is
    pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
