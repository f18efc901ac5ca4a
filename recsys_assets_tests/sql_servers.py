"""Real database servers for tests: MariaDB and PostgreSQL on loopback, one of each for the whole session.

Programs that the machine does not have are taken from its Debian mirror (`apt-get download`, no root needed) and
unpacked below the user's cache; where that fails too, the tests are skipped and say why.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

PASSWORD = "TOP-SECRET-PASSWORD-OF-THE-TESTS"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys_assets_tests"
_NOBODY = 65534


def _program(name: str, packages: list[str]) -> tuple[Path, dict[str, str]]:
    """A program and the environment it runs in."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    program, environ = (Path(found).resolve(), dict[str, str]()) if found else _downloaded(name, packages)
    tried = subprocess.run([program, "--version"], env={**os.environ, **environ}, capture_output=True, text=True)
    if tried.returncode:  # a library that this Debian lacks; what a program that runs does wrong is a failure
        pytest.skip(f"{name} does not run here: {tried.stderr.strip()[-200:]}")
    return program, environ


def _downloaded(name: str, packages: list[str]) -> tuple[Path, dict[str, str]]:
    folder = _CACHE / packages[0]
    if not (folder / "whole").exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg"):
            pytest.skip(f"there is no {name} here, nor a Debian to take it from")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["timeout", "120", "apt-get", "download", *packages]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip()[-200:] or "no answer in two minutes"
            pytest.skip(f"there is no {name} here, and apt-get cannot download it: {said}")
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, folder], check=True, capture_output=True)
        (folder / "whole").touch()
    (program,) = [path for path in folder.rglob(name) if path.is_file() and os.access(path, os.X_OK)]
    libraries = ":".join(sorted({str(path.parent) for path in folder.rglob("*.so*")}))
    return program, {"LD_LIBRARY_PATH": libraries}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], url: str, environ: dict[str, str], folder: Path, user: int | None) -> Iterator[str]:
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **environ}, stdout=log, stderr=log, user=user, group=user, cwd=folder
        )
    try:
        deadline = time.monotonic() + 60
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        while True:
            try:
                engine.connect().close()
                break
            except sa.exc.OperationalError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no server: {(folder / 'log').read_text()[-2000:]}") from None
                time.sleep(0.1)
        yield url
    finally:
        server.send_signal(signal.SIGINT if "postgres" in command[0] else signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextlib.contextmanager
def _folder(user: int | None) -> Iterator[Path]:
    """Not below pytest's own folders: those are closed to the user that the server runs as."""
    folder = Path(tempfile.mkdtemp(prefix="recsys-sql-"))
    try:
        if user is not None:
            os.chown(folder, user, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[str]:
    pytest.importorskip("pymysql", reason="the extra mysql is not installed")
    server, environ = _program("mariadbd", ["mariadb-server-core", "liburing2", "libaio1"])
    share = server.parents[1] / "share/mysql"
    with _folder(None) as folder:
        port = _free_port()
        common = [str(server), "--no-defaults", f"--datadir={folder}", f"--lc-messages-dir={share}"]
        common += ["--user=root"] if os.geteuid() == 0 else []
        tables = "".join((share / f"mysql_system_tables{part}.sql").read_text() for part in ("", "_data"))
        subprocess.run(
            [*common, "--bootstrap", "--skip-networking"],
            input=f"CREATE DATABASE mysql;\nUSE mysql;\n{tables}",
            text=True,
            env={**os.environ, **environ},
            check=True,
            capture_output=True,
        )
        (folder / "init.sql").write_text(
            f"CREATE USER shop@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO shop@'%';\nCREATE DATABASE shop;\n"
        )
        command = [
            *common,
            "--bind-address=127.0.0.1",
            f"--port={port}",
            f"--socket={folder}/socket",
            f"--pid-file={folder}/pid",
            f"--init-file={folder}/init.sql",
            "--default-time-zone=+05:00",
            "--innodb-flush-log-at-trx-commit=0",
        ]
        url = f"mysql+pymysql://shop:{PASSWORD}@127.0.0.1:{port}/shop"
        with _running(command, url, environ, folder, None) as found:
            yield found


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="the extra postgresql is not installed")
    server, environ = _program("postgres", ["postgresql-15", "libpq5"])
    user = _NOBODY if os.geteuid() == 0 else None  # it refuses to run as root
    with _folder(user) as folder:
        port = _free_port()
        (folder / "password").write_text(PASSWORD)
        os.chmod(folder / "password", 0o644)
        options = ["-U", "shop", "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [server.with_name("initdb"), "-D", folder / "data", f"--pwfile={folder}/password", *options],
            env={**os.environ, **environ},
            check=True,
            user=user,
            group=user,
            cwd=folder,
        )
        command = [str(server), "-D", f"{folder}/data", "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "timezone=Asia/Karachi"]
        url = f"postgresql+psycopg://shop:{PASSWORD}@127.0.0.1:{port}/postgres"
        with _running(command, url, environ, folder, user) as found:
            yield found


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    return _emptied(request.getfixturevalue(request.param))


@pytest.fixture(params=["mariadb", "postgresql"])
def any_server(request: pytest.FixtureRequest) -> str:
    """The same of those with more than one connection."""
    return _emptied(request.getfixturevalue(request.param))


def _emptied(url: str) -> str:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    metadata.drop_all(engine)
    return url
