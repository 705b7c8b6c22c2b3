"""Runs gunicorn as a child process: started, waited for, and always stopped."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"
WORKERS = ("gevent", "gthread", "sync")

_EXAMPLES = Path(__file__).resolve().parent.parent

# Each thread serves one request at a time: room for as many clients as a batch holds.
_THREADS = 64
_LONGEST_START = 240.0
_LONGEST_STOP = 10.0
_LOG_LINES = 30


class ServerError(RuntimeError):
    """The server cannot be started, or has died. The message ends with what it logged last."""


class Server:
    """The search service under gunicorn, as a context manager.

    The listening socket is made here and handed to gunicorn, open: a port that is taken shows before
    anything is started, and a free port that was found cannot be lost to somebody else.

    Args:
        worker: One of `WORKERS`.
        processes: How many worker processes. Of several, each has a batcher of its own, and `/metrics` tells of all.
        preload: Whether the application is loaded before the worker processes are forked.
        port: The port on 127.0.0.1; 0 takes a free one.
        cache: Folder of the cached index; the user's own cache folder if left out.
        limit: Number of entries; all if left out.
        application: What gunicorn loads, `MODULE:NAME`.
        environment: Variables that it finds set beside those of this process.

    Raises:
        ServerError: On entering: the port is taken, or the server died before it answered.
    """

    def __init__(
        self,
        worker: str = "gevent",
        *,
        processes: int = 1,
        preload: bool = False,
        port: int = 0,
        cache: Path | None = None,
        limit: int | None = None,
        application: str = "search.wsgi:app",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._worker = worker
        self._preload = preload
        self._wanted_port = port
        self._application = application
        self._environment = {**os.environ, **(environment or {}), "WEB_CONCURRENCY": str(processes)}
        self._processes = processes
        self._metrics: tempfile.TemporaryDirectory[str] | None = None
        if cache is not None:
            self._environment["SEARCH_CACHE"] = os.fspath(cache.resolve())
        if limit is not None:
            self._environment["SEARCH_LIMIT"] = str(limit)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}/"

    def __enter__(self) -> Server:
        self._log = tempfile.TemporaryFile()
        try:
            if self._processes > 1:
                self._metrics = tempfile.TemporaryDirectory(prefix="search-metrics-")
                self._environment["PROMETHEUS_MULTIPROC_DIR"] = self._metrics.name
            self._start()
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def get(self, path: str) -> Any:
        """The decoded JSON that is found at a path.

        Raises:
            OSError: No connection, or no answer within ten seconds.
            ServerError: The server has died, or answers with an error.
        """
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except OSError:
            self.check()
            raise
        except http.client.HTTPException as error:
            raise ServerError(f"{path} was answered wrongly: {error!r}") from None
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise ServerError(f"{path} answered {response.status}: {body.decode(errors='replace')}")
        return json.loads(body)

    def check(self) -> None:
        """Raises `ServerError` if the server is no longer running."""
        if self._process is None or self._process.poll() is not None:
            raise ServerError(f"the server has died\n{self.log()}")

    def wait(self) -> None:
        """Waits for as long as the server runs, then raises `ServerError`."""
        if self._process is not None:
            self._process.wait()
        self.check()

    def log(self) -> str:
        """The last lines that gunicorn and the application wrote."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])

    def stop(self) -> None:
        """Stops the server and all its workers; harmless if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            try:
                process.terminate()
                process.wait(_LONGEST_STOP)
            except subprocess.TimeoutExpired:
                pass
            finally:  # also when a second Ctrl-C ends the wait: whoever is left of its group goes now
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._log.close()
        if self._metrics is not None:
            self._metrics.cleanup()

    def _start(self) -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, self._wanted_port))
            except (OSError, OverflowError) as error:
                raise ServerError(f"port {self._wanted_port} of {HOST} cannot be used: {error}") from None
            self.port = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, *self._command(listener.fileno())],
                cwd=_EXAMPLES,  # `python -m` looks here first: not where modules of other names lie
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the server in order
            )

    def _command(self, listener: int) -> list[str]:
        """What Python is run with, told the descriptor of the listening socket."""
        command = ["-m", "gunicorn", "--config", "python:search.gunicorn_conf"]
        command += ["--pythonpath", os.fspath(_EXAMPLES), "--worker-class", self._worker]
        command += ["--bind", f"fd://{listener}"]
        if self._worker == "gthread":  # of any other class gunicorn would make gthread if told of threads
            command += ["--threads", str(_THREADS)]
        if self._preload:
            command += ["--preload"]
        return [*command, self._application]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _LONGEST_START
        while time.monotonic() < deadline:
            self.check()
            with suppress(OSError):
                self.get("/health")
                return
            time.sleep(0.05)
        raise ServerError(f"the server does not answer after {_LONGEST_START:.0f} s\n{self.log()}")
