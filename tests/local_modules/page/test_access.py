"""Who may reach the page."""

import io

import pytest

from local_modules.errors import InputError
from local_modules.page.access import PASSWORD, find_address, find_password


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
    with pytest.raises(InputError, match="is not an address"):
        find_address(host, 80)
