"""Who may reach the page, and what may be sent to it."""

import io

import numpy as np
import pytest
import soundfile

from local_modules.errors import InputError
from local_modules.page.limits import PASSWORD, find_address, find_password, hear


@pytest.mark.parametrize(
    "name, message",
    [
        ("quiet", "too quiet"),
        ("short", "s of speech; 0.5 s are needed"),
        ("noise", "no speech in its 2.0 s"),
        ("long", "121 s long; here 120 s are the most"),
        ("broken", "can't be read. Save it as WAV"),
    ],
)
def test_a_recording_of_no_use_is_told_as_a_person_needs_it(
    name, message, verifier, bad
):
    with pytest.raises(InputError, match=message) as error:
        hear(verifier, bad[name], "Yours")
    text = str(error.value)
    assert text.startswith("Yours: ") and "\n" not in text
    assert bad[name] not in text  # where it lies here says nothing to anybody


@pytest.mark.parametrize("path", [None, "gone since.wav"])
def test_nothing_at_all(path, verifier):
    with pytest.raises(InputError, match="Yours: is not here yet"):
        hear(verifier, path, "Yours")


def test_clipping_is_a_warning(verifier, bad, words):
    heard = hear(verifier, bad["clipped"], "Yours")
    assert "Yours: is clipped" in heard.warning
    heard = hear(verifier, words["test0"][0], "Yours")
    assert heard.warning is None
    samples, _ = soundfile.read(words["test0"][0], dtype="float32")
    np.testing.assert_allclose(heard.samples, samples, atol=1e-6)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_others_need_a_password(host, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a pipe is no person\n"))
    for nothing in (None, ""):
        monkeypatch.delenv(PASSWORD, raising=False)
        if nothing is not None:
            monkeypatch.setenv(PASSWORD, nothing)
        with pytest.raises(InputError, match=f"{PASSWORD}, or stay on 127.0.0.1"):
            find_password(host, (host, 80))
    monkeypatch.setenv(PASSWORD, "sesame")
    assert find_password(host, (host, 80)) == "sesame"


def test_this_machine_needs_none_and_may_have_one(monkeypatch):
    monkeypatch.delenv(PASSWORD, raising=False)
    for host in ("127.0.0.1", "localhost", "127.9.9.9"):
        _, address = find_address(host, 80)
        assert find_password(host, address) is None
    monkeypatch.setenv(PASSWORD, "sesame")
    assert find_password("127.0.0.1", ("127.0.0.1", 80)) == "sesame"


@pytest.mark.parametrize("host", ["", "no such host", "256.1.1.1", "a" * 80])
def test_what_is_no_host(host):
    with pytest.raises(InputError, match="is no address"):
        find_address(host, 80)
