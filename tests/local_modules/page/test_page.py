"""The page as a person meets it: speaker.py serve, Chromium, and a microphone."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[3]
EVIL = "<img src=x onerror=alert(1)>${1+1}{{value}}"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def serving(trained_run, tmp_path):
    """The address of a page, its process, and the folder it runs in, with `model`
    below `results` and its temporary files in `tmp`."""
    shutil.copytree(trained_run / "model", tmp_path / "here" / "results" / "model")
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    environment.pop("SPEAKER_PASSWORD", None)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "speaker.py"), "serve", "--port", "0"],
        cwd=tmp_path / "here",
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = next((line for line in process.stderr if "http://" in line), "")
        yield line.partition(" at ")[2].strip(), process, tmp_path
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def open_page(tmp_path, words):
    """A function that opens a page in Chromium, whose microphone hears the fourth
    recording of a speaker again and again; and what it asked for and complained of."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    hears = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    hears += [f"--use-file-for-fake-audio-capture={words['test0'][3]}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", *hears]
        )
        page = browser.new_page(permissions=["microphone"])
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        yield page, asked, complaints
        browser.close()


def drop(place, path):
    """Drops a file onto a recorder, and waits until it is there."""
    if place.get_by_label("Clear").count():
        place.get_by_label("Clear").first.click()
    place.get_by_label("Upload file").click()
    with place.page.expect_response(comes_back):
        place.locator("input[type=file]").set_input_files(path)
    expect(place.get_by_label("Play", exact=True)).to_be_visible()


def comes_back(response):
    """Whether a recorder shows what the server has: from then on it can be asked
    about."""
    return "/gradio_api/file=" in response.url


def test_a_terminal_that_is_closed_ends_the_page(serving, words):
    """And deletes the recordings."""
    address, process, folder = serving
    with open(words["test0"][0], "rb") as file:
        sent = httpx.post(f"{address}gradio_api/upload", files={"files": file})
    (path,) = sent.json()
    assert Path(path).is_relative_to(folder / "tmp") and Path(path).exists()
    process.send_signal(signal.SIGHUP)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in error
    assert not list((folder / "tmp").iterdir())


def test_a_person_with_a_microphone(serving, open_page, words):
    address, process, folder = serving
    page, asked, complaints = open_page
    with page.expect_response("**/gradio_api/queue/data*"):
        page.goto(address)  # and who is enrolled has been asked: clicks are heard
    one, other = (page.locator(f"#{name}") for name in ("one", "other"))

    compare = page.get_by_role("button", name="Is it the same person?")
    compare.click()
    expect(page.get_by_text("First recording: is missing")).to_be_visible()

    drop(one, words["test0"][0])
    other.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(2500)
    with page.expect_response(comes_back):
        other.get_by_role("button", name="Stop", exact=True).click()
    expect(other.get_by_label("Play", exact=True)).to_be_visible()
    compare.click()
    expect(page.locator("#verdict .card")).to_contain_text("log-likelihood ratio")
    pictures = page.locator("img.picture")
    expect(pictures).to_have_count(3)
    assert all(
        pictures.nth(n).evaluate("image => image.naturalWidth") > 0 for n in range(3)
    )
    # The microphone's two seconds were sent, and there is sound in them.
    (sent,) = (folder / "tmp").rglob("audio.wav")
    samples, rate = soundfile.read(sent)
    assert 1.5 < len(samples) / rate < 10 and np.abs(samples).max() > 0.1

    page.get_by_role("tab", name="People").click()
    recording, people = page.locator("#recording"), page.locator("#people")
    for name, file in ((EVIL, words["test0"][0]), ("Ann", words["test1"][0])):
        drop(recording, file)
        page.get_by_label("Name").fill(name)
        page.get_by_label("This person agrees").check()
        page.get_by_role("button", name="Enrol this recording").click()
        expect(people.get_by_text(name, exact=True)).to_be_visible()
        expect(page.get_by_label("This person agrees")).not_to_be_checked()
    page.get_by_role("button", name="Who is it?").click()
    expect(page.get_by_role("heading", name="Ann")).to_be_visible()

    page.get_by_role("tab", name="Map").click()
    expect(page.get_by_alt_text("map of the voices")).to_be_visible()

    page.get_by_role("tab", name="People").click()
    page.get_by_label("Person to remove").click()
    page.get_by_role("option", name=EVIL).click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(people.get_by_text(EVIL)).to_have_count(0)
    expect(people.get_by_text("Ann", exact=True)).to_be_visible()

    # On a phone nothing is wider than the screen.
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in ("Compare", "People", "Map"):
        page.get_by_role("tab", name=tab).click()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390

    places = {urlparse(url).netloc for url in asked if url.startswith("http")}
    assert places == {urlparse(address).netloc}
    assert not complaints

    # With a browser that still looks on.
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in error
    assert not list((folder / "tmp").iterdir())
    written = {path.name for path in (folder / "here").rglob("*") if path.is_file()}
    model = {path.name for path in (folder / "here/results/model").iterdir()}
    assert written - model == {"voices.db"}
