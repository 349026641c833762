"""What guards the page, asked over HTTP."""

import json
import shutil
import signal
import socket

import pytest
import uvicorn
from starlette.testclient import TestClient

from local_modules.page.access import PASSWORD
from local_modules.page.hearing import MAX_MEGABYTES
from local_modules.page.server import make_app, serve


@pytest.fixture
def client(answers, tmp_path, monkeypatch):
    """A function that makes a client of the page."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "sent"))

    def make(password=None, names=("127.0.0.1", "localhost")):
        app = make_app(answers, "model", password, names)
        return TestClient(app, base_url="http://127.0.0.1")

    return make


def test_another_host_is_refused_and_nothing_else_is_loaded(client):
    page = client().get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client().get("/", headers={"host": "evil.example"}).status_code == 400
    assert client().get("/", headers={"host": "localhost:80"}).status_code == 200
    anywhere = client(names=None).get("/", headers={"host": "evil.example"})
    assert anywhere.status_code == 200


def test_nothing_without_the_password(client, tmp_path):
    page = client(password="sésame", names=None)
    upload = {"files": ("a.wav", b"x")}
    assert page.get("/config").status_code == 401
    assert page.post("/gradio_api/upload", files=upload).status_code == 401
    for wrong in ("", "sesame", "sésame "):
        given = {"username": "anybody", "password": wrong}
        assert page.post("/login", data=given).status_code in (400, 422)
    assert not list(tmp_path.glob("sent/*/a.wav"))
    given = {"username": "anybody", "password": "sésame"}
    assert page.post("/login", data=given).status_code == 200
    assert page.get("/config").status_code == 200


def test_an_upload_that_is_too_large_is_refused(client, tmp_path):
    page = client()
    for size, status in ((1000, 200), (MAX_MEGABYTES * 10**6 + 1, 413)):
        upload = {"files": ("a.wav", bytes(size))}
        assert page.post("/gradio_api/upload", files=upload).status_code == status
    (kept,) = tmp_path.glob("sent/*/a.wav")
    assert kept.stat().st_size == 1000


def identify(page, path):
    """Whether the question who speaks in a file could be answered, and the answer."""
    functions = page.get("/config").json()["dependencies"]
    (number,) = (each["id"] for each in functions if each["api_name"] == "identify")
    recording = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    asked = {"data": [recording], "fn_index": number, "session_hash": "s"}
    assert page.post("/gradio_api/queue/join", json=asked).status_code == 200
    told = page.get("/gradio_api/queue/data", params={"session_hash": "s"}).text
    lines = [json.loads(line[6:]) for line in told.splitlines() if line]
    (end,) = (line for line in lines if line["msg"] == "process_completed")
    return end["success"], json.dumps(end["output"])


def test_only_what_was_sent_is_read(client, words, tmp_path):
    """Not another file of this machine, whoever asks for it."""
    theirs = shutil.copy(words["test0"][0], tmp_path / "theirs.wav")
    with client() as page, open(theirs, "rb") as file:
        upload = {"files": ("mine.wav", file)}
        (mine,) = page.post("/gradio_api/upload", files=upload).json()
        answered, answer = identify(page, mine)
        assert answered and "Nobody who is enrolled" in answer
        answered, answer = identify(page, theirs)
        assert not answered and "Nobody" not in answer
    assert [path.name for path in (tmp_path / "sent").rglob("*.wav")] == ["mine.wav"]


@pytest.mark.parametrize("host", ["huggingface.co", "public.example"])
def test_nothing_is_loaded_from_the_network(host, client, monkeypatch):
    """Whatever address it is asked for."""
    found = []

    def look_up(name, *arguments, **options):
        found.append(name)
        raise socket.gaierror

    with client() as page:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        assert not identify(page, f"http://{host}/a.wav")[0]
        assert page.get(f"/gradio_api/file=http://{host}/a.wav").status_code == 403
    assert found == []


def test_a_model_of_synthetic_voices_says_so(answers, client, monkeypatch):
    told = "This model was trained on synthetic voices: "
    assert told not in client().get("/config").text
    hparams = answers.verifier.model.classifier.hparams
    monkeypatch.setattr(hparams, "corpus", "demo")
    assert told in client().get("/config").text


def test_what_is_served_has_its_guards_up(answers, monkeypatch):
    """On this machine, asked while it is up."""
    found = []

    def ask(server, sockets):
        page = TestClient(server.config.app, base_url="http://127.0.0.1")
        found.append([listening.getsockname()[0] for listening in sockets])
        for host in ("127.0.0.1", "localhost", "evil.example"):
            found.append(page.get("/config", headers={"host": host}).status_code)
        page.post("/login", data={"username": "anybody", "password": "sésame"})
        found.append(page.get("/config").status_code)

    monkeypatch.setattr(uvicorn.Server, "run", ask)
    monkeypatch.setenv(PASSWORD, "sésame")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # restored at the end
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    try:
        serve(answers, "model", "127.0.0.1", 0)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    assert found == [["127.0.0.1"], 401, 401, 400, 200]
