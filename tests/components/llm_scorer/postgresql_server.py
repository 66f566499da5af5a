"""A PostgreSQL server of the tests' own, in a temporary folder and on a free port."""

import contextlib
import glob
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

from sllmr.components.llm_scorer.store.postgresql import psycopg  # as the product loads it

USER = "scorer"
PASSWORD = "test-password-Kw73Tz19"


class PostgresqlServer:
    """Started, stopped, and killed at will; its data stays."""

    def __init__(self, directory: pathlib.Path, user: str | None):
        self._directory = directory
        self._user = user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.certificate = directory / "certificate.pem"
        self._databases = 0
        self._settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",  # the tests kill the server, never the machine
        }
        passwords = directory / "password"
        passwords.write_text(PASSWORD)
        self._run("initdb", "--username", USER, "--pwfile", str(passwords), "--auth", "scram-sha-256", "--no-sync")

    def use_tls(self) -> None:
        """From the next start on, with `certificate`, which is its own authority."""
        key = self._directory / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
        subprocess.run(
            [*command, "-addext", "subjectAltName=IP:127.0.0.1", "-out", self.certificate, "-keyout", key],
            user=self._user,
            check=True,
            capture_output=True,
        )
        self._settings |= {"ssl": "on", "ssl_cert_file": str(self.certificate), "ssl_key_file": str(key)}

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"store{self._databases}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(self.url(database), autocommit=True, password=PASSWORD)

    def start(self) -> None:
        """Returns once it answers."""
        options = [option for name, value in self._settings.items() for option in ("-c", f"{name}={value}")]
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", str(self._directory / "data"), *options],
                user=self._user,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._directory / "log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ends all connections at once; SIGQUIT without a checkpoint, as a crash does."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)
        self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        command = [_program(program), "-D", str(self._directory / "data"), "--locale=C", "--encoding=UTF8", *arguments]
        subprocess.run(command, user=self._user, check=True, capture_output=True, timeout=120, cwd="/")


def _program(name: str) -> str:
    """Path of one of PostgreSQL's programs; Debian keeps them beside each other, and not on PATH."""
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"PostgreSQL's program {name} is not installed")
    return found


@contextlib.contextmanager
def running_postgresql(tls: bool = False) -> Iterator[PostgresqlServer]:
    _program("initdb"), _program("postgres")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sllmr-postgresql-"))
    user = None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        names = [entry.pw_name for entry in pwd.getpwall()]
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(directory, user)
    server = None
    try:
        server = PostgresqlServer(directory, user)
        if tls:
            server.use_tls()
        server.start()
        yield server
    finally:
        if server is not None and server._process is not None:
            server.stop(signal.SIGQUIT)
        shutil.rmtree(directory)
