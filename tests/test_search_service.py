"""The search example for real: gunicorn, HTTP, concurrent clients, every worker class, signals."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.service

for package in ("numpy", "flask", "gunicorn", "gevent", "rich", "matplotlib"):
    if importlib.util.find_spec(package) is None:  # gevent is not imported into this process
        pytest.skip(f"{package} is not installed", allow_module_level=True)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not (EXAMPLES / "search").is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

from search import bench, load  # noqa: E402
from search.cache import load_index  # noqa: E402
from search.collect import collect  # noqa: E402
from search.server import HOST, WORKERS, Server, ServerError  # noqa: E402

LIMIT = 1500
CLIENTS = 32


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a small index in it, so that servers start fast."""
    folder = tmp_path_factory.mktemp("cache")
    load_index(folder, LIMIT)
    return folder


@pytest.fixture(scope="module")
def questions(cache: Path) -> list[str]:
    return bench.questions_of(load_index(cache, LIMIT).entries)


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("worker", WORKERS)
def test_service(worker: str, preload: bool, cache: Path, questions: list[str]) -> None:
    """All answers under load are right, batches form where requests overlap, bad requests harm nobody."""
    with Server(worker, preload=preload, cache=cache, limit=LIMIT) as server:
        assert server.get("/health") == {"status": "ok", "entries": LIMIT}
        before = server.get("/stats")
        refused = _BadClient(server.port)
        with refused:
            answers = {}
            for endpoint, path in bench.ENDPOINTS.items():
                job = load.Job(HOST, server.port, path, questions, CLIENTS, 0.0, 0.7)
                result = asyncio.run(load.drive(job))
                assert result.failures == {}
                answers[endpoint] = result.answers
        compared, different, found = bench.compare(answers["batched"], answers["unbatched"])
        assert compared >= min(len(questions), 20)
        assert different == 0
        assert found >= 0.9 * compared
        assert refused.statuses == {400}

        after = server.get("/stats")
        assert after["pid"] == before["pid"]
        items = after["batching"]["items"] - before["batching"]["items"]
        batches = after["batching"]["batches"] - before["batching"]["batches"]
        assert (after["batching"]["errors"], after["batching"]["queued"], after["batching"]["running"]) == (
            0,
            0,
            0,
        )
        if worker == "sync":  # serves one request at a time: nothing to batch
            assert items == batches > 0
        else:
            assert items > 1.2 * batches
    with pytest.raises(ProcessLookupError):
        os.kill(after["pid"], 0)
    with socket.socket() as probe:
        assert probe.connect_ex((HOST, server.port)) != 0


class _BadClient:
    """Asks bad questions, one after the other, as long as its context lasts."""

    def __init__(self, port: int) -> None:
        self.statuses: set[int] = set()
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            for path in ("/search", "/search?q=%ff", "/search_unbatched?q=%00", "/search?q=a&k=x"):
                connection = http.client.HTTPConnection(HOST, self._port, timeout=10)
                connection.request("GET", path)
                response = connection.getresponse()
                self.statuses.add(response.status)
                assert "error" in json.load(response)
                connection.close()


def test_longest_question(cache: Path) -> None:
    """The longest question that is allowed passes gunicorn's own limit; a longer one gets a 4xx."""
    with Server(cache=cache, limit=LIMIT) as server:
        assert server.get("/search?q=" + "%F0%9F%8E%89" * 499 + "x")["hits"] is not None
        with pytest.raises(ServerError, match="answered 414"):
            server.get("/search?q=" + "a" * 501)
        with pytest.raises(ServerError, match="answered 4"):
            server.get("/search?q=" + "a" * 100_000)
        assert server.get("/health")["status"] == "ok"


def test_only_this_machine(cache: Path) -> None:
    """The service listens on the loopback address alone."""
    with Server(cache=cache, limit=LIMIT) as server, socket.socket() as probe:
        assert server.url == f"http://127.0.0.1:{server.port}/"
        assert probe.connect_ex(("127.0.0.2", server.port)) != 0


def test_port_taken(cache: Path) -> None:
    """A port in use is reported before anything is started."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1 cannot be used"), Server(port=port):
            pass


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_server_that_dies_at_start(preload: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot start is reported at once, with what it logged."""
    monkeypatch.setenv("SEARCH_LIMIT", "many")
    with (
        pytest.raises(ServerError, match=r"(?s)has died.*invalid literal for int.*many"),
        Server(preload=preload),
    ):
        pass


def test_worker_that_is_killed(cache: Path) -> None:
    """gunicorn replaces a worker process that was killed; the new one answers."""
    with Server(cache=cache, limit=LIMIT) as server:
        first = server.get("/stats")["pid"]
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if server.get("/stats")["pid"] != first:
                    break
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
        assert server.get("/search?q=text")["hits"]
        assert server.get("/stats")["pid"] != first


@pytest.fixture
def command(cache: Path, tmp_path: Path) -> list[str]:
    options = ["--limit", str(LIMIT), "--cache", str(cache), "--out", str(tmp_path / "out")]
    return [sys.executable, str(EXAMPLES / "search"), *options]


def test_command(command: list[str], tmp_path: Path) -> None:
    """The command measures both endpoints, prints a table, writes chart and figures, leaves nothing."""
    options = ["--clients", "8", "--rounds", "2", "--seconds", "0.3"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(text in done.stdout for text in ("unbatched", "batched", "requests/s", "p99 ms", "all alike"))
    assert (tmp_path / "out" / "chart.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert len(figures["samples"]) == 8
    assert {(row["endpoint"], row["clients"]) for row in figures["medians"]} == {
        (endpoint, clients) for endpoint in bench.ENDPOINTS for clients in (1, 8)
    }


@pytest.fixture
def started(command: list[str], request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*command, *request.param], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    with process:
        yield process
        process.kill()


@pytest.mark.parametrize("started", [["--serve", "--worker", "gthread"]], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve(started: subprocess.Popen[str], number: signal.Signals) -> None:
    """With --serve it says where it is and stays until it is told to end, without a traceback."""
    assert started.stdout is not None
    line = next(line for line in started.stdout if "http://" in line)
    port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request("GET", "/?q=text")
    assert b"similarity" in connection.getresponse().read()
    connection.close()
    started.send_signal(number)
    assert started.stdout.read() == "Stopped.\n"
    assert started.wait(10) == 130


@pytest.mark.parametrize("started", [["--seconds", "30"]], indirect=True)
def test_interrupted_while_measuring(started: subprocess.Popen[str]) -> None:
    """Ctrl-C in the middle of a measurement stops the clients and the server, without a traceback."""
    deadline = time.monotonic() + 30
    while "search.load" not in _commands_below(started.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "search.wsgi" in _commands_below(started.pid)
    started.send_signal(signal.SIGINT)
    output, _ = started.communicate(timeout=15)
    assert started.returncode == 130
    assert output.strip() == "Stopped."


@pytest.mark.parametrize("started", [["--seconds", "30"]], indirect=True)
def test_server_that_dies_while_measuring(started: subprocess.Popen[str]) -> None:
    """A server that dies in the middle of a measurement is reported with its log, not as a failure of the clients."""
    deadline = time.monotonic() + 30
    while "search.load" not in _commands_below(started.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, command in _below(started.pid).items():
        if "search.wsgi" in command:
            os.killpg(pid, signal.SIGKILL)
    output, _ = started.communicate(timeout=30)
    assert started.returncode == 1
    assert "Failed: the server has died" in output
    assert "Booting worker" in output


def _commands_below(pid: int) -> str:
    return " ".join(_below(pid).values())


def _below(pid: int) -> dict[int, str]:
    """The command lines of a process's children."""
    commands = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            commands[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().decode()
    return commands


def test_the_whole_library_is_read() -> None:
    """Every file of the running interpreter's library is read or passed over; nearly all can be."""
    entries = list(collect())
    assert len(entries) > 10_000
    assert {entry.kind for entry in entries} == {"module", "class", "function", "method"}
    assert {"json.dumps", "textwrap.wrap", "asyncio.base_events.BaseEventLoop.run_forever"} <= {
        entry.name for entry in entries
    }
    json.dumps(entries).encode("ascii")
