"""A real PostgreSQL for the tests of studies."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def server():
    """A PostgreSQL server of our own."""
    if shutil.which("pg_ctl") is None:
        pytest.skip("no PostgreSQL server is installed")
    # Not pytest's, which another user can't enter.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = Server(folder)
    yield server
    server.stop()
    shutil.rmtree(folder)


class Server:
    """PostgreSQL in a folder, on a free port of this machine."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # The server refuses to run as root.
        self.user = "postgres" if os.getuid() == 0 else getpass.getuser()
        if os.getuid() == 0:
            shutil.chown(folder, self.user)
        self.call("initdb", "-A", "trust", "-U", "tester", "-D", folder / "data")
        self.start()

    def call(self, *command):
        command = [str(word) for word in command]
        if os.getuid() == 0:
            command = ["runuser", "-u", self.user, "--", *command]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        log = self.folder / "log"
        self.call(
            "pg_ctl",
            "-w",
            "-D",
            self.folder / "data",
            "-o",
            options,
            "-l",
            log,
            "start",
        )

    def stop(self):
        self.call("pg_ctl", "-w", "-D", self.folder / "data", "-m", "fast", "stop")

    @contextmanager
    def away(self):
        """Stopped for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def new_database(self):
        """URL of an empty database."""
        name = f"d{uuid.uuid4().hex}"
        self.call("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "tester", name)
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/{name}"
