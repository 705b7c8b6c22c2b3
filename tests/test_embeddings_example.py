"""The embeddings example without torch and without its server: requests, batchers, application, clients, figures."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("flask")
pytest.importorskip("rich")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not (EXAMPLES / "embeddings").is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

from embeddings import bench, cli, load, report, text  # noqa: E402
from embeddings.app import create_app  # noqa: E402
from embeddings.encoder import MOST_WAITING, Encoder, Features  # noqa: E402
from search.collect import Entry  # noqa: E402

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

PATHS = tuple(bench.ENDPOINTS.values())


def tokenise(written: str) -> Features:
    """A token for each character."""
    return {"input_ids": [ord(character) for character in written], "attention_mask": [1] * len(written)}


def forward(features: Any) -> Any:
    """Sum and number of the tokens that the mask leaves."""
    mask = features["attention_mask"]
    return np.stack([(features["input_ids"] * mask).sum(axis=1), mask.sum(axis=1)], axis=1).astype(float)


def vector(written: str) -> list[float]:
    return [float(sum(map(ord, written))), float(len(written))]


class Gated:
    """`forward`, which waits until it is let go on."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, features: Any) -> Any:
        self.entered.set()
        assert self.opened.wait(10)
        return forward(features)


@pytest.fixture
def make() -> Iterator[Callable[..., Encoder]]:
    """Makes encoders, and stops them in the end."""
    made: list[Encoder] = []

    def encoder(model: Any = forward, **options: Any) -> Encoder:
        made.append(Encoder(tokenise, model, pad_id=7, **options))
        return made[-1]

    yield encoder
    stopped = [each.stop() for each in made]
    assert all(stopped)


def post(client: FlaskClient, path: str, written: str) -> TestResponse:
    return client.post(path, json={"text": written})


class TestText:
    @pytest.mark.parametrize("written", ["a", " half a page\n", "ü", "🎉" * text.LONGEST_TEXT, '"\\\x00'])
    def test_texts(self, written: str) -> None:
        """Any text passes, also the longest with every character as two escapes, which is within the longest body."""
        body = json.dumps({"text": written, "more": 1}).encode()
        assert len(body) <= text.LONGEST_BODY
        assert text.read_text(body) == written

    @pytest.mark.parametrize(
        ("body", "message", "status"),
        [
            (b"", "not JSON", 400),
            (b"text=hello", "not JSON", 400),
            (b'{"text": "\xff"}', "not JSON", 400),
            (b"[" * 100_000, "not JSON", 400),
            (b'["text"]', "text is missing", 400),
            (b'"text"', "text is missing", 400),
            (b'{"texts": "a"}', "text is missing", 400),
            (b'{"text": 1}', "must be a string", 400),
            (b'{"text": null}', "must be a string", 400),
            (b'{"text": " \\n"}', "text is empty", 400),
            (b'{"text": "\\ud800"}', "not valid Unicode", 400),
            (json.dumps({"text": "a" * (text.LONGEST_TEXT + 1)}).encode(), "longer than 10000 characters", 413),
        ],
    )
    def test_what_is_none(self, body: bytes, message: str, status: int) -> None:
        """Whatever else comes is refused, with the reason and a status that fits."""
        with pytest.raises(text.BadTextError, match=message) as caught:
            text.read_text(body)
        assert caught.value.status == status


class TestEncoder:
    def test_three_ways(self, make: Callable[..., Encoder]) -> None:
        """In company and alone a text has the same vector: padding does not count."""
        encoder = make()
        written = ["a", "some words", "a longer line of words" * 5, "b"]
        expected = [vector(each) for each in written]
        features = [encoder.tokenise(each) for each in written]
        assert [each.tolist() for each in encoder.batched.map(features)] == expected
        assert [each.tolist() for each in encoder.fifo.map(features)] == expected
        assert [encoder.unbatched(each).tolist() for each in features] == expected

    def test_a_budget_saves_padding(self, make: Callable[..., Encoder]) -> None:
        """Of the same texts of mixed lengths, the batches with a budget are within it, and padded far less."""
        gated = Gated()
        shapes: list[tuple[int, int]] = []

        def model(features: Any) -> Any:
            shapes.append(features["input_ids"].shape)
            return gated(features)

        encoder = make(model, token_budget=256)
        written = ["w" * (4 if number % 4 else 60) for number in range(MOST_WAITING)]
        used = {}
        for way, function in (("budget", encoder.batched), ("fifo", encoder.fifo)):
            gated.entered.clear()
            gated.opened.clear()
            shapes.clear()
            blocker = function.submit(encoder.tokenise("x"))
            assert gated.entered.wait(10)
            futures = [function.submit(encoder.tokenise(each)) for each in written]
            gated.opened.set()
            assert [future.result(10).tolist() for future in futures] == [vector(each) for each in written]
            blocker.result(10)
            used[way] = sum(rows * longest for rows, longest in shapes[1:])
            work = encoder.stats()[way]
            assert (work["texts"], work["batches"]) == (len(written) + 1, len(shapes))
            assert work["padded"] == used[way] + 1
            assert work["tokens"] == sum(map(len, written)) + 1
            if way == "budget":
                assert max(rows * longest for rows, longest in shapes) <= 256
        assert used["budget"] < used["fifo"] / 2

    def test_stats(self, make: Callable[..., Encoder]) -> None:
        """What each way was given is counted by itself."""
        encoder = make()
        encoder.unbatched(tokenise("abc"))
        stats = encoder.stats()
        assert stats["unbatched"] == {"batches": 1, "texts": 1, "tokens": 3, "padded": 3}
        assert stats["budget"]["texts"] == stats["fifo"]["texts"] == 0


class TestApplication:
    @pytest.mark.parametrize("path", PATHS)
    def test_embedding(self, path: str, make: Callable[..., Encoder]) -> None:
        """All addresses answer with the vector and the number of tokens."""
        response = post(create_app(make()).test_client(), path, "hällo")
        assert response.status_code == 200
        assert response.get_json() == {"embedding": vector("hällo"), "tokens": 5}

    @pytest.mark.parametrize("path", PATHS)
    def test_bad_requests(self, path: str, make: Callable[..., Encoder]) -> None:
        """They get an error of their own, and never reach the model."""
        encoder = make()
        client = create_app(encoder).test_client()
        for body, status in (
            (b"no JSON", 400),
            (b"{}", 400),
            (json.dumps({"text": "a" * (text.LONGEST_TEXT + 1)}).encode(), 413),
            (b" " * (text.LONGEST_BODY + 1), 413),
        ):
            response = client.post(path, data=body)
            assert (response.status_code, list(response.get_json())) == (status, ["error"])
        for response, status in ((client.get(path), 405), (client.post("/nothing"), 404)):
            assert (response.status_code, list(response.get_json())) == (status, ["error"])
        assert all(way["texts"] == 0 for way in encoder.stats().values())
        assert post(client, path, "good").get_json()["embedding"] == vector("good")

    def test_bad_requests_disturb_nobody(self, make: Callable[..., Encoder]) -> None:
        """Who waits for a batch gets its result, whatever others send meanwhile."""
        gated = Gated()
        app = create_app(make(gated))
        answers: dict[str, Any] = {}

        def ask(written: str) -> None:
            answers[written] = post(app.test_client(), "/embed", written).get_json()

        threads = [threading.Thread(target=ask, args=("x" * size,)) for size in range(1, 9)]
        for thread in threads:
            thread.start()
        assert gated.entered.wait(10)
        assert app.test_client().post("/embed", data=b"no JSON").status_code == 400
        gated.opened.set()
        for thread in threads:
            thread.join(10)
        assert answers == {"x" * size: {"embedding": vector("x" * size), "tokens": size} for size in range(1, 9)}

    @pytest.mark.parametrize("path", ["/embed", "/embed_fifo"])
    def test_an_overloaded_service_says_so(self, path: str, make: Callable[..., Encoder]) -> None:
        """What cannot be taken on, or not in time, is a 503 with `Retry-After`; the next text is embedded."""
        gated = Gated()
        encoder = make(gated, max_waiting=1)
        app = create_app(encoder, deadline=0.5)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(post(app.test_client(), path, "late")))
        asking.start()
        assert gated.entered.wait(10)
        function = encoder.batched if path == "/embed" else encoder.fifo
        waiting = function.submit(tokenise("waits"))
        full = post(app.test_client(), path, "no room")
        asking.join(10)
        for response in (full, *answers):
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            assert response.get_json() == {"error": "the service is overloaded"}
        assert len(answers) == 1
        gated.opened.set()
        assert waiting.result(10).tolist() == vector("waits")
        assert post(app.test_client(), path, "next").status_code == 200
        stats = app.test_client().get("/stats").get_json()
        assert stats["ways"]["budget" if path == "/embed" else "fifo"]["rejected"] == 1
        assert stats["pid"] == os.getpid()
        assert stats["cpu_seconds"] > 0

    def test_a_model_that_fails(self, make: Callable[..., Encoder]) -> None:
        """An error within the model is a 500 without its details."""

        def broken(features: Any) -> Any:
            raise RuntimeError("private details")

        client = create_app(make(broken)).test_client()
        for path in PATHS:
            response = post(client, path, "a")
            assert (response.status_code, list(response.get_json())) == (500, ["error"])
            assert "private" not in response.get_data(as_text=True)


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Starts a server of a few lines that answers with a status for each text; gives its port."""
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(status_of: Callable[[str], int], received: list[str]) -> int:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                written = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
                received.append(written)
                status = status_of(written)
                if not status:
                    self.close_connection = True
                    return
                body = json.dumps({"embedding": vector(written)}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        started.append((server, thread))
        return server.server_port

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


class TestLoad:
    def test_each_text_is_sent_once(self, serve: Callable[..., int]) -> None:
        """By whichever client is free; every answer is timed and kept."""
        received: list[str] = []
        texts = [f"text {number}" for number in range(50)]
        result = load.drive(load.Job("127.0.0.1", serve(lambda _: 200, received), "/", 4, texts=texts))
        assert sorted(received) == sorted(texts)
        assert result.embeddings == {each: vector(each) for each in texts}
        assert (len(result.latencies), result.failures) == (50, {})
        assert all(0 < latency <= result.seconds for latency in result.latencies)

    def test_failures_are_counted(self, serve: Callable[..., int]) -> None:
        """Bad statuses and lost connections are counted by kind, and what follows them is sent all the same."""
        statuses = {"full": 503, "lost": 0}
        port = serve(lambda written: statuses.get(written, 200), [])
        result = load.drive(load.Job("127.0.0.1", port, "/", 1, texts=["a", "full", "lost", "b"]))
        assert list(result.embeddings) == ["a", "b"]
        assert result.failures == {"status 503": 1, "connection: RemoteDisconnected": 1}

    def test_it_comes_to_an_end(self, serve: Callable[..., int]) -> None:
        """After its time no further text is sent; those that are left count as failures."""
        port = serve(lambda _: time.sleep(0.02) or 200, [])
        texts = [str(number) for number in range(1000)]
        result = load.drive(load.Job("127.0.0.1", port, "/", 2, limit=0.2, texts=texts))
        sent = len(result.latencies)
        assert 0 < sent < 1000
        assert result.failures == {"not sent in time": 1000 - sent}

    def test_nobody_there(self) -> None:
        """Without a server each text is a failure."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            result = load.drive(load.Job("127.0.0.1", taken.getsockname()[1], "/", 8, texts=["a", "b"]))
        assert result.failures == {"connection: ConnectionRefusedError": 2}

    def test_its_process(self, serve: Callable[..., int]) -> None:
        """Run as a process, it gives the same; one that fails is told of with its last words."""
        job = load.Job("127.0.0.1", serve(lambda _: 200, []), "/", 2, texts=["a", "ü"])
        assert bench.run_clients(job).embeddings == {"a": vector("a"), "ü": vector("ü")}
        with pytest.raises(bench.LoadError, match=r"the clients failed: (?s:.*)TypeError"):
            bench.run_clients(load.Job("127.0.0.1", 1, "/", 2, texts=None))  # type: ignore[arg-type]


def sample(endpoint: str, rate: float, cpu: float, **failures: int) -> bench.Sample:
    return bench.Sample(endpoint, rate, 0.1, 0.2, cpu, 8.0, 0.25, failures)


@pytest.fixture
def measured() -> bench.Measured:
    """Two rounds."""
    rates = {"unbatched": (50.0, 40.0), "fifo": (20.0, 25.0), "budget": (60.0, 100.0)}
    samples = [sample(way, both[number], 1 / both[number]) for number in (0, 1) for way, both in rates.items()]
    return bench.Measured(samples, 200, 0.99999)


class TestFigures:
    def test_texts(self) -> None:
        """Docstrings, each once, always the same; none that the service would refuse."""
        docs = ["", "  ", "same", "same", "x" * (text.LONGEST_TEXT + 1), *(f"doc {number}" for number in range(20))]
        entries = [Entry(f"m.f{number}", "function", "()", doc, 1) for number, doc in enumerate(docs)]
        chosen = bench.texts_of(entries, 21)
        assert sorted(chosen) == sorted({"same", *docs[5:]})
        assert chosen == bench.texts_of(entries, 21)
        with pytest.raises(ValueError, match="21 docstrings, fewer than 22"):
            bench.texts_of(entries, 22)

    def test_cosine(self) -> None:
        """The cosine, whatever the lengths; none with a zero vector, or of vectors of unlike dimensions."""
        assert bench.cosine([1, 2], [2, 4]) == pytest.approx(1)
        assert bench.cosine([1, 0], [0, 5]) == 0
        assert math.isnan(bench.cosine([0, 0], [1, 1]))
        with pytest.raises(ValueError):
            bench.cosine([1], [1, 2])

    def test_ratios_are_of_rounds(self, measured: bench.Measured) -> None:
        """Each round's figures are compared with each other, not with those of a slower round."""
        assert measured.throughput("budget", "fifo") == bench.Ratio(3.5, 3.0, 4.0)
        assert measured.work("budget", "unbatched").median == pytest.approx((60 / 50 + 100 / 40) / 2)
        assert measured.median("fifo", "requests_per_second") == 22.5

    @pytest.mark.parametrize(
        ("compared", "least", "failures", "is_right"),
        [
            (10, 0.99991, {}, True),
            (10, 0.99989, {}, False),
            (10, math.nan, {}, False),
            (0, math.nan, {}, False),
            (10, 1.0, {"status 503": 1}, False),
        ],
    )
    def test_is_right(self, compared: int, least: float, failures: dict[str, int], is_right: bool) -> None:
        """Only if all was answered, and all that was compared is alike."""
        found = bench.Measured([sample("budget", 1.0, 1.0, **failures)], compared, least)
        assert found.is_right is is_right

    def test_table_and_figures(self, measured: bench.Measured, tmp_path: Path) -> None:
        """The table has a line for each endpoint, and fits a terminal; the file has every sample."""
        from rich.console import Console

        console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        with console.file:
            console.print(report.table(measured, "Title"))
        shown = console.export_text()
        assert "…" not in shown
        assert all(f"│ {way}" in shown for way in bench.ENDPOINTS)
        assert "80 (60 - 100)" in shown
        assert any(
            "3.50 times the requests/s" in line and "(3.00 to 4.00)" in line for line in report.findings(measured)
        )
        report.write_figures(tmp_path / "figures.json", measured, {"clients": 32})
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert len(figures["samples"]) == 6
        assert figures["ratios"]["budget over fifo"]["requests per second"]["median"] == 3.5
        assert figures["medians"]["budget"]["requests_per_second"] == 80
        assert figures["settings"] == {"clients": 32}

    def test_failures_are_told(self) -> None:
        """Failed requests are told of by kind, and endpoints that served none divide nothing."""
        found = bench.Measured([sample(way, 0.0, 0.0, lost=3) for way in bench.ENDPOINTS], 0, math.nan)
        assert report.findings(found)[-1] == "9 requests failed (lost)."


class TestCommandLine:
    def test_missing_packages(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Packages that are not installed are named, with the command that installs them."""
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else name)
        assert cli.main([]) == 1
        shown = capsys.readouterr().err
        assert "Not installed: torch." in shown
        assert "pip install '.[embeddings]'" in shown

    @pytest.mark.parametrize("options", [["--rounds", "0"], ["--clients", "-1"], ["--texts", "x"]])
    def test_wrong_options(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Options out of range are refused before anything starts."""
        with pytest.raises(SystemExit) as caught:
            cli.main(options)
        assert caught.value.code == 2
        assert options[0] in capsys.readouterr().err
