"""The search example without its server: collecting, vectors, exact search, cache, application, figures."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("flask")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not (EXAMPLES / "search").is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

from search import bench, cache, cli, load, question, vectors  # noqa: E402
from search.app import create_app  # noqa: E402
from search.collect import Entry, collect, library_root, read_module, source_files  # noqa: E402
from search.index import MOST_HITS, Hit, Index, Query  # noqa: E402
from search.vectors import DIMENSIONS, Vectoriser, words  # noqa: E402

from ubatch import UBatch  # noqa: E402

if TYPE_CHECKING:
    from flask import Flask

PARTS = (
    "json",
    "textwrap.py",
    "shutil.py",
    "heapq.py",
    "difflib.py",
    "statistics.py",
    "functools.py",
    "string.py",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small library: a few hundred definitions from the real one."""
    root = tmp_path_factory.mktemp("library")
    for name in PARTS:
        part = library_root() / name
        if part.is_dir():
            shutil.copytree(part, root / name)
        elif part.exists():  # some of these are packages in newer versions
            shutil.copy(part, root)
    return root


@pytest.fixture(scope="module")
def index(library: Path) -> Index:
    return cache.build_index(root=library)


@pytest.fixture(scope="module")
def questions(index: Index) -> list[str]:
    return bench.questions_of(index.entries)


@pytest.fixture
def app(index: Index) -> Iterator[Flask]:
    made = create_app(index)
    yield made
    assert made.extensions["batch"].stop(timeout=5)


def _entries(source: str | bytes, folder: Path) -> list[Entry]:
    path = folder / "sample.py"
    path.write_bytes(source.encode() if isinstance(source, str) else source)
    return list(read_module("sample", path))


class TestCollect:
    def test_known_names_of_the_running_interpreter(self) -> None:
        """Definitions that every version has are found, with what their sources say about them."""
        files = dict(source_files(library_root()))
        found = {
            entry.name: entry
            for module in ("json", "json.decoder", "textwrap", "collections")
            for entry in read_module(module, files[module])
        }
        assert found["json"].kind == "module"
        assert found["json.dumps"].kind == "function"
        assert found["json.dumps"].signature.startswith("(obj, *, skipkeys=False")
        assert found["json.dumps"].summary == "Serialize ``obj`` to a JSON formatted ``str``."
        assert found["json.decoder.JSONDecoder"].kind == "class"
        assert found["json.decoder.JSONDecoder.decode"].kind == "method"
        assert found["textwrap.wrap"].signature == "(text, width=70, **kwargs)"
        assert found["collections.OrderedDict"].signature == "(dict)"

    def test_definitions_anywhere(self, tmp_path: Path) -> None:
        """Definitions are found in branches, handlers, loops, cases, other functions and classes."""
        source = '''
            """About the sample."""
            try:
                def tried(): ...
            except ImportError:
                def otherwise(): ...
            else:
                class Fine: ...
            finally:
                def at_last(): ...
            if True:
                async def waits(x: int = 1, /, *rest: str, key=None, **more) -> list[int]:
                    """
                    Waits.

                    And waits.
                    """
                    def inner(): ...
            else:
                while True:
                    class Outer(Base, metaclass=Meta):
                        """Holds one."""
                        @property
                        def value(self): ...
                        class Inner: ...
            match 1:
                case 1:
                    def matched(): ...
            with open("x"):
                def opened(): ...
        '''
        lines = [line[12:] for line in source.splitlines()]
        found = {entry.name: entry for entry in _entries("\n".join(lines), tmp_path)}
        assert {name: entry.kind for name, entry in found.items()} == {
            "sample": "module",
            "sample.tried": "function",
            "sample.otherwise": "function",
            "sample.Fine": "class",
            "sample.at_last": "function",
            "sample.waits": "function",
            "sample.waits.inner": "function",
            "sample.Outer": "class",
            "sample.Outer.value": "method",
            "sample.Outer.Inner": "class",
            "sample.matched": "function",
            "sample.opened": "function",
        }
        waits = found["sample.waits"]
        assert waits.signature == "(x: int=1, /, *rest: str, key=None, **more) -> list[int]"
        assert (waits.summary, waits.doc) == ("Waits.", "Waits.\n\nAnd waits.")
        assert "And waits" not in waits.text
        assert found["sample"].doc == "About the sample."
        assert found["sample.Outer"].signature == "(Base, metaclass=Meta)"
        assert lines[found["sample.Outer"].line - 1].strip().startswith("class Outer")

    @pytest.mark.parametrize(
        "source",
        [
            b"def broken(:",
            b"\x00",
            b"# coding: utf-8\nname = '\xff'",
            b"# coding: nothing-known\n",
            b"x = " + b"(" * 3000 + b")" * 3000,
            b"x = " + b"-" * 100_000 + b"1",
        ],
        ids=["syntax", "null", "undecodable", "unknown-encoding", "nested", "deep"],
    )
    def test_files_that_cannot_be_parsed_are_passed_over(self, source: bytes, tmp_path: Path) -> None:
        """A file that is no Python yields nothing and stops nothing."""
        assert _entries(source, tmp_path) == []

    def test_encodings(self, tmp_path: Path) -> None:
        """A file's own encoding is heeded; lone surrogates become something that can be encoded."""
        assert _entries(b"# coding: latin-1\n'''caf\xe9'''\n", tmp_path)[0].doc == "café"
        assert _entries(r'"""half \ud800 of a pair"""', tmp_path)[0].doc == "half ? of a pair"

    def test_which_files(self, tmp_path: Path) -> None:
        """Packages are named after their folders; installed packages and byte code do not count."""
        for name in ("b.py", "a/__init__.py", "a/c.py", "site-packages/d.py", "__pycache__/e.py", "f.txt"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        assert [module for module, _ in source_files(tmp_path)] == ["b", "a", "a.c"]
        assert [entry.name for entry in collect(tmp_path)] == ["b", "a", "a.c"]


class TestVectors:
    def test_words(self) -> None:
        """Identifiers are taken apart; nothing else than letters and digits is left."""
        assert words("JSONEncoder.iter_encode(HTTPServer2) — Größe") == [
            *("json", "encoder", "iter", "encode", "http", "server", "2"),
            *("gr", "öß", "e"),
        ]

    def test_the_same_in_every_process(self, index: Index, library: Path) -> None:
        """Vectors do not depend on the process, its hash seed or the order of its sets."""
        code = (
            "import sys, hashlib, pathlib; from search.cache import build_index;"
            "built = build_index(root=pathlib.Path(sys.argv[1]));"
            "print(hashlib.sha256(built.vectors.tobytes() + built.vectoriser.idf.tobytes()).hexdigest())"
        )
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONPATH": str(EXAMPLES), "PYTHONHASHSEED": seed}
            command = [sys.executable, "-c", code, str(library)]
            printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            here = hashlib.sha256(index.vectors.tobytes() + index.vectoriser.idf.tobytes()).hexdigest()
            assert printed.strip() == here

    def test_length(self, index: Index) -> None:
        """Vectors have length 1; text without anything known has the zero vector."""
        assert np.allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)
        assert index.vectoriser.vector("wrap some text").dtype == np.float32
        for text in ("", "!?", "ॐॐॐ"):
            assert not index.vectoriser.vector(text).any()

    def test_common_words_count_less(self, index: Index) -> None:
        """A bucket used by many texts weighs less than one used by few; an unused one weighs nothing."""
        idf = index.vectoriser.idf
        bucket = vectors._bucket
        assert 0 < idf[bucket("self")] < idf[bucket("json")] < idf[bucket("dumps")]
        assert idf[bucket("zyxwvu")] == 0

    def test_wrong_weights(self) -> None:
        """Weights of another size or type are refused."""
        for idf in (np.zeros(3, np.float32), np.zeros(vectors.BUCKETS, np.float64)):
            with pytest.raises(ValueError, match="idf must be"):
                Vectoriser(idf)


def _by_brute_force(index: Index, query: Query) -> list[Hit]:
    vector = index.vectoriser.vector(query.text).astype(np.float64)
    scores = (index.vectors.astype(np.float64) * vector).sum(axis=1).round(6) + 0.0
    best = np.lexsort((np.arange(len(scores)), -scores))[: query.wanted]
    return [Hit(index.entries[row], scores[row]) for row in best]


class TestIndex:
    def test_exact(self, index: Index, questions: list[str]) -> None:
        """The hits are those of a full sort of all cosines in double precision."""
        for text in questions[:60]:
            for wanted in (1, 10, MOST_HITS):
                assert index.search([Query(text, wanted)])[0] == _by_brute_force(index, Query(text, wanted))

    def test_the_same_in_any_batch(self, index: Index, questions: list[str], seed: int) -> None:
        """A query's hits and scores do not depend on the batch it is asked in."""
        queries = [Query(text, 1 + at % 20) for at, text in enumerate(questions)]
        alone = {query: index.search([query])[0] for query in queries}
        for query, hits in alone.items():
            assert len(hits) == query.wanted
        generator = random.Random(seed)
        for size in (2, 3, 17, 64):
            batch = generator.choices(queries, k=size)
            assert index.search(batch) == [alone[query] for query in batch]

    def test_a_first_line_finds_its_entry(self, index: Index, questions: list[str]) -> None:
        """Most questions that are first lines of docstrings lead to an entry of that first line, at once."""
        answers = index.search([Query(text) for text in questions])
        ranks = [
            next((rank for rank, hit in enumerate(hits) if hit.entry.summary == text), None)
            for text, hits in zip(questions, answers, strict=True)
        ]
        assert sum(rank is not None for rank in ranks) >= 0.97 * len(questions)
        assert sum(rank == 0 for rank in ranks) >= 0.9 * len(questions)

    def test_ties_rank_in_the_order_of_the_library(self, index: Index) -> None:
        """Entries with the same vector keep their order, however the product is made."""
        same = [index.entries[7]._replace(line=line) for line in range(3000)]
        tied = Index.build([*index.entries[:50], *same])
        query = Query(same[0].text[:200], 25)
        alone = tied.search([query])[0]
        assert [hit.entry.line for hit in alone[1:]] == list(range(24))
        assert tied.search([query, Query("wrap text"), query]) == [
            alone,
            tied.search([Query("wrap text")])[0],
            alone,
        ]

    def test_few_entries(self, index: Index) -> None:
        """Of an index smaller than what is wanted everything comes back."""
        small = Index.build(index.entries[:3])
        assert len(small.search([Query(index.entries[0].text, 50)])[0]) == 3

    def test_unknown_words(self, index: Index) -> None:
        """What shares nothing with the library has no hits, alone and beside others."""
        assert index.search([Query("ॐॐॐ")]) == [[]]
        nothing, something = index.search([Query("ॐॐॐ"), Query("wrap text")])
        assert nothing == []
        assert something == index.search([Query("wrap text")])[0]

    def test_what_does_not_fit(self, index: Index) -> None:
        """Vectors of another number, width or type than the entries' are refused."""
        for made in (index.vectors[:-1], index.vectors[:, :-1], index.vectors.astype(np.float64)):
            with pytest.raises(ValueError, match="do not go with"):
                Index(index.entries, made, index.vectoriser)
        with pytest.raises(ValueError, match="do not go with"):
            Index([], np.empty((0, DIMENSIONS), np.float32), index.vectoriser)


def _flip(at: float) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        place = int(at * (len(content) - 1))
        return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]

    return change


def _with_digest(*parts: Any) -> bytes:
    body = io.BytesIO()
    for part in parts:
        np.save(body, part, allow_pickle=True)
    return hashlib.blake2b(body.getvalue(), digest_size=32).digest() + body.getvalue()


def _as_bytes(content: bytes) -> Any:
    return np.frombuffer(content, np.uint8)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut in the digest": lambda content: content[:20],
    "cut in half": lambda content: content[: len(content) // 2],
    "cut by one byte": lambda content: content[:-1],
    "one byte more": lambda content: content + b"x",
    "something else": lambda content: b"not an index" * 1000,
    **{f"bit flipped at {at}": _flip(at) for at in (0, 0.00001, 0.0005, 0.5, 1)},
    "only a key": lambda content: _with_digest(_as_bytes(b"key")),
    "a pickle": lambda content: _with_digest(np.array([{"a": 1}], dtype=object)),
}


class TestCache:
    def test_written_once_then_read(
        self, library: Path, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second call reads what the first one wrote, and it is the same."""
        first = cache.load_index(tmp_path / "new" / "folder", root=library)
        monkeypatch.setattr(cache, "build_index", lambda *_: pytest.fail("built again"))
        second = cache.load_index(tmp_path / "new" / "folder", root=library)
        for one in (first, second):
            assert list(one.entries) == list(index.entries)
            assert all(type(entry) is Entry for entry in one.entries)
            assert np.array_equal(one.vectors, index.vectors)
            assert np.array_equal(one.vectoriser.idf, index.vectoriser.idf)

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
    def test_damaged(
        self,
        damage: Callable[[bytes], bytes],
        library: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A file that was cut, changed or made by others is built anew, with a warning, and put right."""
        limit = 30
        first = cache.load_index(tmp_path, limit, library)
        [path] = tmp_path.iterdir()
        content = path.read_bytes()
        path.write_bytes(damage(content))
        second = cache.load_index(tmp_path, limit, library)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert second.entries == first.entries
        assert np.array_equal(second.vectors, first.vectors)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]

    def test_another_version(
        self,
        library: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """What another Python or another version of the code has written is built anew, in the same place."""
        cache.load_index(tmp_path, 30, library)
        monkeypatch.setattr(sys, "version", "3.99.0")
        cache.load_index(tmp_path, 30, library)
        changed = tmp_path / "changed.py"
        changed.write_text("# another algorithm")
        monkeypatch.setattr(cache, "_SOURCES", [changed])
        cache.load_index(tmp_path, 30, library)
        assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
            "it is of another version"
        ] * 2
        assert len(list(tmp_path.glob("*.index"))) == 1

    def test_each_limit_and_library_has_its_own(self, library: Path, tmp_path: Path) -> None:
        """Indexes of other sizes or folders do not replace each other."""
        for limit in (10, 20):
            assert len(cache.load_index(tmp_path, limit, library).entries) == limit
        assert len(cache.load_index(tmp_path, 10, library / "json").entries) == 10
        assert len(list(tmp_path.iterdir())) == 3

    def test_folder_that_cannot_be_written(
        self, library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without a place for the cache there is an index all the same, and a warning."""
        (tmp_path / "file").write_text("")
        assert len(cache.load_index(tmp_path / "file" / "folder", 10, library).entries) == 10
        assert "not cached" in caplog.text

    def test_two_processes_at_once(self, library: Path, tmp_path: Path) -> None:
        """Processes that build the same index at the same time both get it and leave one good file."""
        code = (
            "import sys, pathlib; from search.cache import load_index;"
            "print('ready', flush=True); sys.stdin.readline();"
            "print(len(load_index(pathlib.Path(sys.argv[1]), None, pathlib.Path(sys.argv[2])).entries))"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), str(library)],
                env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        counts = {process.communicate("go\n", timeout=60)[0] for process in processes}
        assert counts == {f"{len(cache.load_index(tmp_path, None, library).entries)}\n"}
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_library_without_sources(self, tmp_path: Path) -> None:
        """An interpreter without its sources is told so."""
        with pytest.raises(ValueError, match="no Python sources"):
            cache.load_index(tmp_path, root=tmp_path)

    def test_default_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Caches go where the user keeps caches."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache.default_folder() == tmp_path / "ubatch-search"


BAD_REQUESTS = {
    "": (400, "q is missing"),
    "k=3": (400, "q is missing"),
    "q=": (400, "no letters"),
    "q=+%0a%09": (400, "no letters"),
    "q=%3F%21": (400, "no letters"),
    "q=a&q=b": (400, "more than once"),
    "q=%ff%fe": (400, "UTF-8"),
    "q=%ed%a0%80": (400, "UTF-8"),
    "q=a%00b": (400, "control"),
    "q=a%1b[31m": (400, "control"),
    "q=" + "a" * 501: (414, "longer than 500"),
    "q=" + "a+" * 20_000: (414, "longer than 500"),
    "q=a&k=0": (400, "k must be"),
    "q=a&k=101": (400, "k must be"),
    "q=a&k=-1": (400, "k must be"),
    "q=a&k=1.5": (400, "k must be"),
    "q=a&k=": (400, "k must be"),
    "q=a&k=%D9%A3": (400, "k must be"),
    "q=a&k=" + "9" * 5000: (400, "k must be"),
    "q=a&k=1&k=2": (400, "more than once"),
    "q=a" + "&x=1" * 20: (400, "more than 16 fields"),
}


class TestApplication:
    def test_both_endpoints_give_the_same(self, app: Flask, questions: list[str]) -> None:
        """Batched and unbatched answers are alike, to the byte, also when many ask at once."""
        answers: dict[str, list[bytes]] = {"/search": [], "/search_unbatched": []}

        def ask(path: str) -> None:
            client = app.test_client()
            for text in questions[:40]:
                answers[path].append(client.get(path, query_string={"q": text, "k": 7}).data)

        _at_once([lambda: ask("/search"), lambda: ask("/search_unbatched")])
        assert answers["/search"] == answers["/search_unbatched"]
        first = json.loads(answers["/search"][0])
        assert first["query"] == questions[0]
        assert len(first["hits"]) == 7
        assert set(first["hits"][0]) == {"name", "kind", "signature", "summary", "line", "score"}

    @pytest.mark.parametrize("path", ["/search", "/search_unbatched"])
    def test_bad_questions_are_refused(self, app: Flask, path: str) -> None:
        """What cannot be answered gets a 4xx with the reason as JSON and never reaches the batcher."""
        client = app.test_client()
        for query, (status, reason) in BAD_REQUESTS.items():
            response = client.get(f"{path}?{query}")
            assert (response.status_code, response.is_json) == (status, True), query
            assert reason in response.get_json()["error"], query
        assert app.extensions["batch"].stats.submitted == 0

    def test_bad_questions_disturb_nobody(self, app: Flask, index: Index, questions: list[str]) -> None:
        """Good questions are answered right while others ask bad ones."""
        wrong = []

        def good(texts: list[str]) -> None:
            client = app.test_client()
            for text in texts:
                names = [hit["name"] for hit in client.get("/search", query_string={"q": text}).get_json()["hits"]]
                if names != [hit.entry.name for hit in index.search([Query(text)])[0]]:
                    wrong.append(text)

        def bad() -> None:
            client = app.test_client()
            for query, (status, _) in BAD_REQUESTS.items():
                if client.get(f"/search?{query}").status_code != status:
                    wrong.append(query)

        _at_once([*(lambda at=at: good(questions[at:80:4]) for at in range(4)), bad, bad])
        assert wrong == []

    def test_odd_but_good_questions(self, app: Flask) -> None:
        """Long, multi-line and foreign text is text; raw UTF-8 in the address is understood."""
        client = app.test_client()
        for text in ("a" * 500, "wrap\r\n\ttext", "größe ॐ 文字列 🎉x", "' OR 1=1 --", "%s {0} \\x"):
            response = client.get("/search", query_string={"q": text})
            assert (response.status_code, response.get_json()["query"]) == (200, text)
        assert question.read_question("q=größe&k=3".encode()) == Query("größe", 3)

    def test_stats_and_health(self, app: Flask, index: Index) -> None:
        """The batcher's counters can be read; only batched requests move them."""
        client = app.test_client()
        assert client.get("/health").get_json() == {"status": "ok", "entries": len(index.entries)}
        for path in ("/search?q=wrap", "/search_unbatched?q=wrap", "/search?q=wrap"):
            client.get(path)
        stats = client.get("/stats").get_json()
        assert stats["pid"] == os.getpid()
        assert (stats["batching"]["items"], stats["batching"]["batches"]) == (2, 2)
        assert stats["batching"]["mean_batch_size"] == 1.0

    def test_errors_are_json(self, app: Flask) -> None:
        """Unknown addresses and wrong methods are answered like everything else."""
        client = app.test_client()
        for response, status in ((client.get("/nothing"), 404), (client.post("/search?q=a"), 405)):
            assert (response.status_code, list(response.get_json())) == (status, ["error"])

    def test_a_search_that_fails(self, index: Index, caplog: pytest.LogCaptureFixture) -> None:
        """An error within the search is a 500 without its details, and the next question is answered."""

        class Fragile(Index):
            def search(self, queries: Any) -> list[list[Hit]]:
                if any(query.text == "break" for query in queries):
                    raise RuntimeError("private details")
                return super().search(queries)

        app = create_app(Fragile(index.entries, index.vectors, index.vectoriser))
        client = app.test_client()
        for path in ("/search", "/search_unbatched"):
            response = client.get(f"{path}?q=break")
            assert response.status_code == 500
            assert "private" not in response.get_data(as_text=True)
            assert client.get(f"{path}?q=wrap").status_code == 200
        assert caplog.text.count("RuntimeError: private details") >= 2
        assert app.extensions["batch"].stop(timeout=5)

    def test_an_overloaded_service_says_so(self, index: Index) -> None:
        """What cannot be taken on, or not in time, is a 503 with `Retry-After`; the next question is answered."""
        entered, opened = threading.Event(), threading.Event()

        class Slow(Index):
            def search(self, queries: Any) -> list[list[Hit]]:
                entered.set()
                assert opened.wait(10)
                return super().search(queries)

        slow = Slow(index.entries, index.vectors, index.vectoriser)
        batch = UBatch(handler=slow.search, max_queue=1)
        app = create_app(slow, batch, deadline=0.5)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(app.test_client().get("/search?q=wrap")))
        asking.start()
        assert entered.wait(10)
        waiting = batch.submit(Query("wrap"))
        full = app.test_client().get("/search?q=wrap")
        asking.join(10)
        for response in (full, *answers):
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            assert response.get_json() == {"error": "the service is overloaded"}
        assert len(answers) == 1
        opened.set()
        assert waiting.result(10)
        assert app.test_client().get("/search?q=wrap").status_code == 200
        counted = app.test_client().get("/stats").get_json()["batching"]
        assert (counted["rejected"], counted["errors"]) == (1, 1)
        assert batch.stop(timeout=5)

    def test_what_is_shown_is_escaped(self, app: Flask, index: Index) -> None:
        """Markup in a question or in the library is text on the page, and the page runs no scripts but its own."""
        client = app.test_client()
        attack = '"><script>alert(1)</script><b onload=x>'
        response = client.get("/", query_string={"q": attack})
        page = response.get_data(as_text=True)
        assert response.status_code == 200
        assert attack not in page
        assert re.findall("<script.*", page) == ['<script type="module" src="/static/page.js"></script>']
        assert "&lt;script&gt;" in page
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        hostile = Index.build([Entry("m.f", "function", "(x='<i>')", "<img src=x> evil", 1), *index.entries[:5]])
        other = create_app(hostile)
        page = other.test_client().get("/?q=evil").get_data(as_text=True)
        assert other.extensions["batch"].stop(timeout=5)
        assert "<img" not in page
        assert "<i>" not in page
        assert "&lt;img src=x&gt; evil" in page

    def test_page(self, app: Flask) -> None:
        """The page names the endpoints, answers, says when nothing is found, and refuses bad questions."""
        client = app.test_client()
        start = client.get("/").get_data(as_text=True)
        assert all(path in start for path in ("/search?", "/search_unbatched?", "/stats", "/health", "<form"))
        assert "textwrap.wrap" in client.get("/?q=wrap+a+paragraph+of+text").get_data(as_text=True)
        assert "Nothing" in client.get("/?q=ॐॐॐ").get_data(as_text=True)
        assert client.get("/?q=").status_code == 400


def _at_once(tasks: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class TestLoad:
    """The clients, against a server of a few lines."""

    @staticmethod
    def _drive(respond: Callable[[int, bytes], bytes], **changes: Any) -> load.Result:
        async def run() -> load.Result:
            served = 0

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal served
                try:
                    while True:
                        request = await reader.readuntil(b"\r\n\r\n")
                        served += 1
                        answer = respond(served, request)
                        for at in range(0, len(answer), 40):  # in pieces, as a network may
                            writer.write(answer[at : at + 40])
                            await writer.drain()
                            await asyncio.sleep(0)
                        if b"connection: close" in answer:
                            break
                except (asyncio.IncompleteReadError, ConnectionError):
                    pass
                finally:
                    writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                job = {
                    "host": "127.0.0.1",
                    "port": port,
                    "path": "/p",
                    "questions": ["a b", "ü"],
                    "clients": 3,
                }
                return await load.drive(load.Job(**{**job, "warm_up": 0.02, "seconds": 0.1, **changes}))

        return asyncio.run(run())

    @staticmethod
    def _response(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
        return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)

    @pytest.mark.parametrize("headers", [b"", b"connection: close\r\n"], ids=["kept", "closed"])
    def test_answers_and_times(self, headers: bytes) -> None:
        """Every answer is read whole and timed, on connections that are kept and on those that are not."""
        result = self._drive(lambda _, request: self._response(request.split()[1], headers=headers), seconds=0.5)
        assert result.failures == {}
        assert result.answers == {"a b": "/p?q=a%20b", "ü": "/p?q=%C3%BC"}
        assert result.requests_per_second > 20
        assert all(0 < latency < 1 for latency in result.latencies)
        assert abs(len(result.latencies) - result.requests_per_second * 0.5) <= 6

    def test_failures_are_counted(self) -> None:
        """Bad statuses and answers that change are counted by kind."""
        result = self._drive(lambda served, _: self._response(b"x", b"503 No" if served % 2 else b"200 OK"))
        assert list(result.failures) == ["status 503"]
        result = self._drive(lambda served, _: self._response(b"%d" % served))
        assert list(result.failures) == ["another answer to the same question"]

    @pytest.mark.parametrize(
        "answer",
        [
            b"connection: close",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"nonsense\r\n\r\n",
        ],
        ids=["cut off", "no length", "chunked", "no HTTP"],
    )
    def test_no_sense(self, answer: bytes) -> None:
        """A server that closes without an answer, or answers with something else, is given up soon."""
        with pytest.raises(ConnectionError):
            self._drive(lambda *_: answer, seconds=30)

    def test_nobody_there(self) -> None:
        """Without a server there is an error, not an endless wait."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            job = load.Job("127.0.0.1", taken.getsockname()[1], "/", ["a"], 8, 0, 30)
            with pytest.raises(ConnectionError):
                asyncio.run(load.drive(job))


def _sample(endpoint: str, clients: int, rate: float, p50: float, **failures: int) -> bench.Sample:
    return bench.Sample(endpoint, clients, rate, p50, 2 * p50, 8.0, failures)


def _measured() -> bench.Measured:
    rates = {("unbatched", 1): 100, ("batched", 1): 98, ("unbatched", 64): 110, ("batched", 64): 990}
    return bench.Measured([_sample(*which, rate, rate / 1e4) for which, rate in rates.items()], 40, 0, 38)


class TestFigures:
    def test_questions(self, index: Index, questions: list[str]) -> None:
        """Questions are distinct first lines of docstrings; without any, names."""
        assert len(questions) == len(set(questions)) > 100
        assert set(questions) <= {entry.summary for entry in index.entries}
        bare = [Entry(f"m.f{at}", "function", "()", "", 1) for at in range(4)]
        assert sorted(bench.questions_of(bare)) == ["m.f0", "m.f1", "m.f2", "m.f3"]
        assert bench.questions_of(bare[:1]) == ["m.f0"]

    def test_percentile(self) -> None:
        """Percentiles are values that occurred."""
        assert bench.percentile([3, 1, 2], 0.5) == 2
        assert bench.percentile(range(1, 101), 0.99) == 99
        assert bench.percentile([5], 0.99) == 5
        assert math.isnan(bench.percentile([], 0.5))

    def test_same_hits(self) -> None:
        """Scores may differ by the tolerance; names and their order may not."""
        hits = [{"name": "a", "score": 0.5}, {"name": "b", "score": 0.4}]
        near = [{"name": "a", "score": 0.500009}, {"name": "b", "score": 0.4}]
        far = [{"name": "a", "score": 0.50002}, {"name": "b", "score": 0.4}]
        assert bench.same_hits(hits, near)
        assert not any(bench.same_hits(hits, other) for other in (far, hits[::-1], hits[:1]))

    def test_compare(self) -> None:
        """Questions that both answered are compared, and looked for in their own answers."""
        right = json.dumps({"hits": [{"name": "a", "summary": "one", "score": 1.0}]})
        wrong = json.dumps({"hits": []})
        assert bench.compare({"one": right, "two": right, "three": right}, {"one": right, "two": wrong}) == (
            2,
            1,
            1,
        )

    def test_summary(self) -> None:
        """Medians over the rounds, the slowest and the fastest, all failures."""
        samples = [_sample("batched", 64, rate, p50) for rate, p50 in ((100, 0.3), (300, 0.1), (250, 0.2))]
        samples.append(_sample("batched", 64, 260, 0.2, timeout=2))
        measured = bench.Measured(samples, 5, 0, 5)
        summary = measured.summary("batched", 64)
        assert (summary.requests_per_second, summary.slowest, summary.fastest, summary.p50) == (
            255,
            100,
            300,
            0.2,
        )
        assert (measured.failed, summary.failures) == (2, {"timeout": 2})

    def test_table_and_figures(self, tmp_path: Path) -> None:
        """The table and the JSON hold what was measured; a narrow terminal gets all of it."""
        console = pytest.importorskip("rich.console").Console(width=80, file=io.StringIO())
        from search import report

        measured = _measured()
        console.print(report.table(measured, [1, 64], "A run"))
        shown = console.file.getvalue()
        assert all(text in shown for text in ("A run", "990", "batched", "9.0 times", "p50 by -2.0 %", "95 %"))
        assert "…" not in shown
        report.write_figures(tmp_path / "figures.json", measured, [1, 64], {"worker": "gevent"})
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert [row["requests_per_second"] for row in figures["medians"]] == [100, 98, 110, 990]
        assert len(figures["samples"]) == 4
        assert str(Path.home()) not in json.dumps(figures)

    def test_chart(self, tmp_path: Path, run_python: Callable[..., str]) -> None:
        """The chart is a PNG. Drawn in a process of its own: matplotlib keeps its font files open."""
        pytest.importorskip("matplotlib")
        pytest.importorskip("rich")
        samples = json.dumps(_measured().samples, default=vars)
        code = f"""
            import json, pathlib
            from search import bench, report
            samples = [bench.Sample(**sample) for sample in json.loads({samples!r})]
            path = pathlib.Path({str(tmp_path / "chart.png")!r})
            report.draw_chart(path, bench.Measured(samples, 1, 0, 1), [1, 64], "A run")
        """
        run_python(code, env={"PYTHONPATH": str(EXAMPLES)}, stderr=None)
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


class TestCommandLine:
    def test_missing_packages(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Packages that are not installed are named, with the command that installs them."""
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in ("gevent", "rich") else find(name)
        )
        assert cli.main([]) == 1
        shown = capsys.readouterr().err
        assert "Not installed: rich, gevent." in shown
        assert "pip install" in shown

    @pytest.mark.parametrize("options", [["--rounds", "0"], ["--seconds", "-1"], ["--limit", "x"], ["--worker", "y"]])
    def test_wrong_options(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Options out of range are refused before anything starts."""
        with pytest.raises(SystemExit) as caught:
            cli.main(options)
        assert caught.value.code == 2
        assert options[0] in capsys.readouterr().err
