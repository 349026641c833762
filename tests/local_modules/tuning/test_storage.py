"""Studies in a journal and in a real PostgreSQL: opened by many, old or damaged."""

import re
import time
from pathlib import Path

import pytest
import sqlalchemy
from optuna.study import StudyDirection

from local_modules.errors import InputError
from local_modules.tuning import storage
from local_modules.tuning.storage import StorageGone, open_study, point_to_storage
from local_modules.tuning.study import enqueue_defaults, live_trials
from tests.programs import Program


def begin(url, folder):
    enqueue_defaults(open_study(url, folder, "s", 1), {"lr": 0.1})
    return 0


def test_many_open_a_new_database_at_once(server, tmp_path):
    url = server.new_database()
    programs = [Program(begin, url, tmp_path) for _ in range(4)]
    for program in programs:
        output = program.output()
        assert program.status == 0, output
    assert list(live_trials(open_study(url, tmp_path, "s", 1))) == [0]


def test_a_journal_by_a_relative_path_with_an_old_lock(tmp_path, monkeypatch):
    """Optuna's own lock, left behind by a kill, made every later start wait."""
    monkeypatch.chdir(tmp_path)
    Path("study").mkdir()
    (tmp_path / "study" / "study.journal.lock").symlink_to("study/study.journal")
    study = open_study(None, Path("study"), "s", 1)
    enqueue_defaults(study, {"lr": 0.5})
    assert (
        open_study(None, tmp_path / "study", "s", 1).trials[0].state.name == "WAITING"
    )


@pytest.mark.parametrize("n_objectives", [1, 2])
def test_the_less_the_better(n_objectives, tmp_path):
    study = open_study(None, tmp_path, "s", n_objectives)
    assert study.directions == n_objectives * [StudyDirection.MINIMIZE]


def test_another_number_of_objectives_is_refused(tmp_path):
    open_study(None, tmp_path, "s", 1)
    with pytest.raises(InputError, match="has 1 objectives, not 2"):
        open_study(None, tmp_path, "s", 2)


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+psycopg://nobody@127.0.0.1:9/none", "what://ever"]
)
def test_a_wrong_storage_is_one_line(url, tmp_path):
    with pytest.raises(InputError) as caught:
        open_study(url, tmp_path, "s", 1)
    assert url in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://nobody:s3cret@127.0.0.1:9/none",
        "postgresql+psycopg://127.0.0.1:9/none?user=nobody&password=s3cret",
        "postgresql+psycopg:/nobody:s3cret@127.0.0.1/none",
        "postgresql+psycopg//nobody:s3cret@127.0.0.1/none",
        "postgresql+psycopg://nobody:s3:/cret@127.0.0.1:port/none",
    ],
)
def test_a_wrong_storage_does_not_show_its_password(url, tmp_path):
    with pytest.raises(InputError, match="can't be opened") as caught:
        open_study(url, tmp_path, "s", 1)
    message = str(caught.value)
    assert "***" in message and "cret" not in message and "nobody" in message


def test_a_database_gone_for_good_is_waited_for_once(server, tmp_path, monkeypatch):
    """By all connections of a process; a trial's heartbeat outlasts it."""
    monkeypatch.setattr(storage, "OUTAGE_SECONDS", 3)
    url = server.new_database()
    study, other = open_study(url, tmp_path, "s", 1), open_study(url, tmp_path, "s", 1)
    trial = study.ask()
    with server.away():
        begun = time.monotonic()
        study._storage.record_heartbeat(trial._trial_id)
        assert time.monotonic() - begun > 3
        begun = time.monotonic()
        for one in (study, other):
            with pytest.raises(StorageGone, match=r"unavailable .* \(.*refused"):
                live_trials(one)
        assert time.monotonic() - begun < 3
    study._storage.record_heartbeat(trial._trial_id)
    assert len(live_trials(other)) == 1


def test_a_damaged_journal_is_one_line(tmp_path):
    (tmp_path / "study.journal").write_text("no journal\nof any kind\n")
    with pytest.raises(InputError) as caught:
        open_study(None, tmp_path, "s", 1)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'study.journal'}: can't be opened (")
    assert "\n" not in message


def test_half_a_line_that_a_kill_has_left_is_taken_away(tmp_path):
    study = open_study(None, tmp_path, "s", 1)
    study.tell(study.ask(), 0.5)
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    study.tell(study.ask(), 0.4)
    cut = journal.read_bytes()[len(whole) :]
    assert cut.count(b"\n") > 1
    journal.write_bytes(whole + cut[: len(cut) - 9])
    study = open_study(None, tmp_path, "s", 1)  # as a later start
    study.tell(study.ask(), 0.3)
    values = [trial.value for trial in open_study(None, tmp_path, "s", 1).trials]
    assert values == [0.5, None, 0.3]


def test_a_database_that_takes_nothing_is_one_line(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    open_study(url, tmp_path, "s", 1)
    with pytest.raises(InputError, match="can't be opened") as caught:
        open_study(f"sqlite:///file:{tmp_path}/s.db?mode=ro&uri=true", tmp_path, "t", 1)
    assert "\n" not in str(caught.value)
    assert "attempt to write a readonly database" in str(caught.value)


def test_a_database_without_the_right_to_create_tables_says_so(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(storage, "CREATIONS", 2)
    url = server.new_database()
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.exec_driver_sql("CREATE ROLE reader LOGIN")
    told = r"can't be opened \(permission denied for schema public\)"
    with pytest.raises(InputError, match=told):
        open_study(url.replace("tester@", "reader@"), tmp_path, "s", 1)


@pytest.mark.parametrize(
    ("url", "noted"),
    [
        (None, "study.journal"),
        ("postgresql+psycopg://me:s3cret@h/d", "postgresql+psycopg://me@h/d"),
        ("postgresql+psycopg://h/d?user=me&password=s3cret", None),
    ],
)
def test_a_folder_belongs_to_one_storage(url, noted, tmp_path):
    point_to_storage(url, tmp_path)
    path = tmp_path / "storage.txt"
    pointer = path.read_text().strip()
    assert pointer == (noted or pointer) and "s3cret" not in pointer
    other = f"sqlite:///{tmp_path}/s.db" if url is None else None
    told = f"is in {pointer}, not in {other or 'study.journal'}; "
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        open_study(other, tmp_path, "s", 1)
    assert "\n" not in str(caught.value)
    # Nothing of the other study is begun.
    assert [path] == [one for one in tmp_path.iterdir() if one.name[0] != "."]
    if url is None:
        open_study(url, tmp_path, "s", 1)


def test_a_connection_lost_between_two_queries_of_a_transaction(server, tmp_path):
    """As by a restart of the server; Optuna goes on in the transaction that is over."""
    url = server.new_database()
    study = open_study(url, tmp_path, "s", 1)
    enqueue_defaults(study, {"lr": 0.1})
    lost = []

    @sqlalchemy.event.listens_for(
        study._storage._backend.engine, "before_cursor_execute"
    )
    def lose(connection, cursor, statement, *_):
        if not lost and "FROM trials" in statement:
            lost.append(cursor.connection.info.backend_pid)
            with sqlalchemy.create_engine(url).connect() as other:
                other.exec_driver_sql(f"SELECT pg_terminate_backend({lost[0]})")

    assert list(live_trials(study)) == [0]
    assert lost
