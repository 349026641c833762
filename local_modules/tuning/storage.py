"""Where a study is stored: a journal in its folder, or a database that several machines
share and that may be unavailable for a while."""

import contextlib
import functools
import os
import re
import time
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend, JournalStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
    SQLAlchemyError,
)

from local_modules.errors import InputError, RunError
from local_modules.files import replacing
from local_modules.tuning.study import experimental, put_back

JOURNAL = "study.journal"
POINTER = "storage.txt"  # in a study's folder: where the study is
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 40
CREATIONS = 10  # tries to create the tables of a database
OUTAGE_SECONDS = 300  # how long a database may be unavailable, as in a restart


SECRETS = ("password", "passwd", "sslpassword")  # parts of a URL's query


class StorageGone(RunError):
    """The database has been unavailable for longer than that."""


def open_study(
    storage: str | None, folder: Path, name: str, n_objectives: int
) -> optuna.Study:
    """Creates a study or opens it.

    Arguments
    ---------
    storage : str | None
        URL of a database; None for `study.journal` in the study's folder.
    folder : Path
        The study's folder; must exist.
    name : str
        Name of the study in the storage.
    n_objectives : int
        All are minimised.

    Returns
    -------
    optuna.Study
        With Optuna's default sampler and pruner.

    Raises
    ------
    InputError
        The storage can't be used or is not the folder's, or the study has another
        number of objectives.
    """
    try:
        _check_pointer(storage, folder)
        with experimental():
            study = optuna.create_study(
                study_name=name,
                storage=_journal(folder) if storage is None else _database(storage),
                directions=["minimize"] * n_objectives,
                load_if_exists=True,
            )
    except (
        SQLAlchemyError,
        StorageInternalError,
        ImportError,
        ValueError,
        RuntimeError,
    ) as error:
        if storage is None:
            where = folder / JOURNAL
        else:
            where = f"--storage {hide_password(storage)}"
        raise InputError(f"{where}: can't be opened ({_first_line(error)})") from None
    if len(study.directions) != n_objectives:
        raise InputError(
            f"--study {name}: has {len(study.directions)} objectives, not "
            f"{n_objectives}; choose another name"
        )
    return study


def point_to_storage(storage: str | None, folder: Path) -> None:
    """Notes in a study's folder where the study is stored."""
    with replacing(folder / POINTER) as file:
        file.write(f"{_place(storage)}\n")


def hide_password(word: str) -> str:
    """A word of a command line, in which the password of a database's URL is `***`.

    Example
    -------
    >>> hide_password("--storage=postgresql+psycopg://me:s3cret@host/db")
    '--storage=postgresql+psycopg://me:***@host/db'
    >>> hide_password("postgresql://host/db?user=me&password=s3cret")
    'postgresql://host/db?user=me&password=***'
    """
    # Also where the URL is none, for want of a colon or a slash.
    password = rf"(?<=:/|//)([^:/]*:)[^@]*(?=@)|([?&](?:{'|'.join(SECRETS)})=)[^&]*"
    return re.sub(password, r"\1\2***", word)


def _first_line(error: Exception) -> str:
    while error.__cause__ is not None:  # Optuna's and SQLAlchemy's only wrap it
        error = error.__cause__
    return str(error).strip().splitlines()[0]


def _check_pointer(storage: str | None, folder: Path) -> None:
    path = folder / POINTER
    earlier = path.read_text(encoding="utf-8").strip() if path.exists() else None
    now = _place(storage)
    if earlier not in (None, now):
        raise InputError(
            f"{path}: the study of this folder is in {earlier}, not in {now}; continue "
            "it with its own --storage, or choose another --study name"
        )


def _place(storage: str | None) -> str:
    if storage is None:
        return JOURNAL
    # Others may read the file, but not the password.
    url = make_url(storage)._replace(password=None)  # set() ignores None
    return url.difference_update_query(SECRETS).render_as_string()


class _JournalLock:
    """A lock for Optuna's journal that the system releases when its process ends.
    Optuna's own is a link in the file system, which outlasts a killed process.

    Acquiring it removes an incomplete last line, left by a killed process or a full
    disk: the next line would be appended to it and be unreadable.
    """

    def __init__(self, path: Path, journal: Path):
        self._lock = FileLock(path)
        self._journal = journal

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            with open(self._journal, "rb+") as file:
                n_bytes = file.seek(0, os.SEEK_END)
                file.seek(max(0, n_bytes - 1))
                if file.read() not in (b"", b"\n"):
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        except OSError:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _journal(folder: Path) -> JournalStorage:
    lock = _JournalLock(folder / ".journal.lock", folder / JOURNAL)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL), lock))


def _database(url: str) -> optuna.storages.RDBStorage:
    for n_left in reversed(range(CREATIONS)):
        try:
            return _PatientStorage(
                url,
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=put_back,
            )
        except (IntegrityError, ProgrammingError):
            # Two may create the tables at the same time; one then fails.
            if n_left == 0:
                raise
        time.sleep(1.0)


def _patient(method):
    """A storage's method that waits while the database is unavailable, as in a restart,
    so that no trial fails because of it."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        deadline = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                result = method(*args, **kwargs)
            except (DBAPIError, StorageInternalError) as error:
                # The last if the outage came between two queries of a transaction.
                outage = (OperationalError, InterfaceError, PendingRollbackError)
                causes = (error, error.__cause__)
                if not any(isinstance(cause, outage) for cause in causes):
                    raise
                if _PatientStorage.is_gone or time.monotonic() > deadline:
                    _PatientStorage.is_gone = True
                    raise StorageGone(
                        "--storage: the database has been unavailable for "
                        f"{OUTAGE_SECONDS / 60:.0f} minutes ({_first_line(error)}); "
                        "once it is back, the same command continues"
                    ) from error
                time.sleep(1.0)
            else:
                _PatientStorage.is_gone = False
                return result

    return call


class _PatientStorage(optuna.storages.RDBStorage):
    """A database whose methods used during a study wait for the end of an outage."""

    # For the whole process: once a method has waited in vain, no other waits.
    is_gone = False

    def record_heartbeat(self, trial_id: int) -> None:
        """As Optuna's; its thread outlasts an outage, as a long epoch may."""
        with contextlib.suppress(StorageGone):
            _patient(super().record_heartbeat)(trial_id)


for _name in (
    "_create_new_trial",
    "_get_stale_trial_ids",
    "_get_trials",
    "_set_trial_param",
    "get_study_directions",
    "get_study_name_from_id",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "set_trial_intermediate_value",
    "set_trial_state_values",
    "set_trial_system_attr",
    "set_trial_user_attr",
):
    setattr(_PatientStorage, _name, _patient(getattr(_PatientStorage, _name)))
