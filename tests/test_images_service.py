"""The images example for real: child processes, every server, HTTP, concurrent clients, children that are killed."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.service

for package in (
    "numpy",
    "PIL",
    "skimage",
    "psutil",
    "flask",
    "gunicorn",
    "gevent",
    "aiohttp",
    "fastapi",
    "uvicorn",
    "rich",
):
    if importlib.util.find_spec(package) is None:  # gevent is not imported into this process
        pytest.skip(f"{package} is not installed; the extra `images` has it", allow_module_level=True)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not (EXAMPLES / "images").is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

import psutil  # noqa: E402
from images import bench, load, model, photographs  # noqa: E402
from images.server import SERVERS, server  # noqa: E402
from search.machine import cores  # noqa: E402
from search.server import HOST, WORKERS, Server  # noqa: E402

CLIENTS = 16
IMAGES = 72
CAT = photographs.encoded(photographs.photograph(photographs.FILES["cat"]))
PATIENCE = 20.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model in it."""
    folder = tmp_path_factory.mktemp("cache")
    model.load_model(folder)
    return folder


def send(port: int, body: bytes = CAT, path: str = "/classify") -> tuple[int, Any]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def drive(started: Server, endpoint: str, clients: int = CLIENTS, images: int = IMAGES) -> load.Result:
    return load.drive(load.Job(HOST, started.port, bench.ENDPOINTS[endpoint], clients, images=images, seed=99))


def children(started: Server, step: int) -> list[dict[str, Any]]:
    """The child processes of a step, by their number."""
    found: list[dict[str, Any]] = started.get("/stats")["steps"][step]["processes"]["children"]
    return found


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


class Family:
    """A server's process and all below it, and what they have in `/dev/shm`.

    Other processes of the machine have their own there, so names are noted while those who use them live.
    """

    def __init__(self, started: Server) -> None:
        process = psutil.Process(started.get("/stats")["pid"])
        while (parent := process.parent()) is not None and parent.pid != os.getpid():
            process = parent
        self.head = process
        self.members = [process, *process.children(recursive=True)]
        maps = (Path(f"/proc/{each.pid}/maps").read_text().splitlines() for each in self.members)
        self.shared = {line.split()[5] for lines in maps for line in lines if "/dev/shm/" in line}

    def has_gone(self) -> bool:
        """Whether all have ended and left nothing in `/dev/shm`: those who are dead already do not count."""
        alive = [each for each in self.members if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        return not alive and not any(os.path.exists(name) for name in self.shared)


class Annoyance:
    """Sends what is no image, over and over, as long as its context lasts."""

    def __init__(self, port: int) -> None:
        self.statuses: list[int] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Annoyance:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            for body in (b"", b"text", CAT[:5000], CAT[:700] + bytes(9000)):
                status, answer = send(self._port, body)
                self.statuses.append(status)
                assert list(answer) == ["error"]


@pytest.mark.parametrize(
    ("kind", "preload"), [*((kind, False) for kind in SERVERS), *((kind, True) for kind in WORKERS)]
)
def test_service(kind: str, preload: bool, cache: Path) -> None:
    """On every server: right answers under load, the same as without a flow; bad images harm nobody; a clean end."""
    with server(kind, preload=preload, cache=cache) as started:
        assert send(started.port)[0] == 200
        ready = 1 if preload else cores()  # after a fork a child is started by the first batch that needs it
        assert started.get("/health") == {"status": "ok", "children": {"images.decode": ready, "images.classify": 1}}
        before = started.get("/stats")
        with Annoyance(started.port) as annoyance:
            flow = drive(started, "flow")
        here = drive(started, "here")
        assert flow.failures == here.failures == {}
        assert flow.labels.keys() == here.labels.keys()
        assert all(bench.same(labels, here.labels[number]) for number, labels in flow.labels.items())
        assert flow.right >= 0.95 * IMAGES
        assert annoyance.statuses[:4] == [400, 415, 400, 400]
        assert set(annoyance.statuses) == {400, 415}

        after = started.get("/stats")
        assert after["pid"] == before["pid"]
        decoded, classified = (
            {name: new[name] - old[name] for name in ("items", "batches", "errors")}
            | {name: new["processes"][name] - old["processes"][name] for name in ("sent", "received")}
            for old, new in zip(before["steps"], after["steps"], strict=True)
        )
        broken = annoyance.statuses.count(400) * 2 // 3  # the empty ones never got there
        assert (decoded["items"], decoded["errors"]) == (IMAGES + broken, broken)
        assert (classified["items"], classified["errors"]) == (IMAGES, 0)
        pixels = IMAGES * 224 * 224 * 3 * 4
        assert pixels <= decoded["received"] and pixels <= classified["sent"]
        if kind != "sync":  # serves one request at a time: nothing to batch
            assert classified["items"] > 1.2 * classified["batches"]
        for step in after["steps"]:
            processes = step["processes"]
            assert (step["queued"], step["running"], processes["died"]) == (0, 0, 0)
            assert processes["transfer"]["count"] > 0 and processes["handling"]["p50"] > 0
            used = [child for child in processes["children"] if child["calls"]]
            assert used and all(child["alive"] and child["memory"] > 2**20 for child in used)

        family = Family(started)
        pids = {child["pid"] for step in (0, 1) for child in children(started, step)} - {0}
        assert pids < {each.pid for each in family.members}
        family.head.terminate()
        eventually(family.has_gone)
        assert "Traceback" not in started.log()


@pytest.mark.parametrize("kind", ["gthread", "gevent", "aiohttp"])
@pytest.mark.parametrize("step", [0, 1], ids=["decode", "classify"])
def test_a_child_that_is_killed(kind: str, step: int, cache: Path) -> None:
    """What it had in hand is refused with 503, once; it is replaced, and what follows is served."""
    with server(kind, cache=cache) as started:
        drive(started, "flow", images=CLIENTS)
        before = children(started, step)
        results: list[load.Result] = []
        thread = threading.Thread(target=lambda: results.append(drive(started, "flow", images=300)))
        thread.start()
        eventually(lambda: started.get("/stats")["steps"][step]["running"])
        os.kill(before[0]["pid"], signal.SIGKILL)
        thread.join()
        (result,) = results
        assert set(result.failures) <= {"status 503"}
        refused = sum(result.failures.values())
        assert len(result.labels) + refused == 300
        assert refused <= 2 * CLIENTS  # at most a batch that ran, and one that was sent to who is dead
        assert result.right >= 0.95 * len(result.labels)
        eventually(lambda: all(child["alive"] for child in children(started, step)))
        assert started.get("/stats")["steps"][step]["processes"]["died"] == 1
        assert before[0]["pid"] not in {child["pid"] for child in children(started, step)}
        assert send(started.port)[0] == 200
        family = Family(started)
        family.head.terminate()
        eventually(family.has_gone)


def test_a_batch_of_a_killed_child(cache: Path) -> None:
    """A child that is stopped holds its batch; once it is killed its sender gets 503, and the next one is served."""
    with server("gthread", cache=cache) as started:
        assert send(started.port)[0] == 200
        (child,) = children(started, 1)
        os.kill(child["pid"], signal.SIGSTOP)
        answers: list[tuple[int, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(send(started.port)))
        thread.start()
        eventually(lambda: started.get("/stats")["steps"][1]["running"])
        os.kill(child["pid"], signal.SIGKILL)
        thread.join()
        assert answers == [(503, {"error": "the process that had the image in hand ended: try again"})]
        assert send(started.port)[0] == 200


@pytest.mark.parametrize(("kind", "preload"), [("gthread", False), ("sync", True), ("uvicorn", False)])
def test_a_server_that_is_killed(kind: str, preload: bool, cache: Path) -> None:
    """Nothing outlives a server's process that had no time to end in order, under load."""
    with server(kind, preload=preload, cache=cache) as started:
        assert send(started.port)[0] == 200
        family = Family(started)
        thread = threading.Thread(target=drive, args=(started, "flow"))
        thread.start()
        time.sleep(0.1)
        for process in family.members:
            if "multiprocessing" not in " ".join(process.cmdline()):
                process.kill()
        thread.join()
        eventually(family.has_gone)


@pytest.fixture
def command(cache: Path, tmp_path: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "images"), "--cache", str(cache), "--out", str(tmp_path / "out")]


def test_command(command: list[str], tmp_path: Path) -> None:
    """The command measures both endpoints, prints a table and writes figures."""
    options = ["--clients", "4", "1", "--rounds", "2", "--images", "16"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(said in done.stdout for said in ("here", "flow", "requests/s", "p99 ms", "CPU ms", "all alike"))
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert len(figures["samples"]) == 8
    assert (figures["compared"], figures["different"]) == (64, 0)
    assert all(row["cpu_per_request"] > 0 for row in figures["medians"])


@pytest.fixture
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    options = ["--serve", "--server", "aiohttp"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    with process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve(started: subprocess.Popen[str], number: signal.Signals) -> None:
    """With --serve it says where it is and stays until it is told to end, without a traceback."""
    assert started.stdout is not None
    line = next(line for line in started.stdout if "http://" in line)
    port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
    assert send(port)[0] == 200
    started.send_signal(number)
    assert started.stdout.read() == "Stopped.\n"
    assert started.wait(10) == 130
