"""The search example's live page: what it is told, what Prometheus is told, and the page itself in a browser."""

from __future__ import annotations

import http.client
import importlib.util
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

for package in ("numpy", "flask", "gunicorn", "gevent", "prometheus_client"):
    if importlib.util.find_spec(package) is None:  # gevent is not imported into this process
        pytest.skip(f"{package} is not installed", allow_module_level=True)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not (EXAMPLES / "search").is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

import browser  # noqa: E402
from browser import chromium, wait_until  # noqa: E402
from prometheus_client import CollectorRegistry  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from search import gunicorn_conf  # noqa: E402
from search.app import create_app  # noqa: E402
from search.cache import load_index  # noqa: E402
from search.index import Query  # noqa: E402
from search.question import MOST_QUESTIONS  # noqa: E402
from search.server import HOST, Server  # noqa: E402
from search.watch import MOST_MARKS  # noqa: E402

from ubatch import UBatch, metrics  # noqa: E402

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from selenium.webdriver import Chrome

LIMIT = 1500


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a small index in it."""
    folder = tmp_path_factory.mktemp("cache")
    load_index(folder, LIMIT)
    return folder


@pytest.fixture
def batch(cache: Path) -> Iterator[UBatch[Query, Any]]:
    with UBatch(4, 0.0, handler=load_index(cache, LIMIT).search, name="search", max_queue=64) as batch:
        yield batch


@pytest.fixture
def client(cache: Path, batch: UBatch[Query, Any]) -> Iterator[FlaskClient]:
    registry = CollectorRegistry()
    end = metrics.prometheus(batch, registry)
    yield create_app(load_index(cache, LIMIT), batch, registry=registry).test_client()
    end()


def told(client: FlaskClient, *marks: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/stats", query_string={"since": list(marks)}).get_json()
    return found


class TestStats:
    def test_each_batch_is_told_once_to_each_who_asks(self, client: FlaskClient, batch: UBatch[Query, Any]) -> None:
        """An answer tells what was done since the mark that is brought along, however many others ask meanwhile."""
        start = told(client)
        assert start["since"] is None
        batch.map([Query("wrap text")] * 10)
        first, other = told(client, start["mark"]), told(client)
        batch.map([Query("parse json")] * 3)
        second, whole = told(client, first["mark"]), told(client, start["mark"])
        assert other["since"] is None
        assert [seen["since"]["items"] for seen in (first, second, whole)] == [10, 3, 13]
        assert [seen["since"]["size"]["count"] for seen in (first, second, whole)] == [3, 1, 4]
        assert [seen["since"]["size"]["p99"] for seen in (first, second, whole)] == [4, 3, 4]
        assert [seen["since"]["wait"]["count"] for seen in (first, second, whole)] == [10, 3, 13]
        assert 0 < whole["since"]["run"]["p50"] <= whole["since"]["run"]["p90"] <= whole["since"]["run"]["p99"]
        assert whole["since"]["seconds"] > first["since"]["seconds"] > 0
        assert second["batching"]["items"] == 13

    def test_of_several_marks_the_latest_counts(self, client: FlaskClient, batch: UBatch[Query, Any]) -> None:
        """Marks of other processes, and what is none, are passed over."""
        marks = []
        for count in (1, 2, 3):
            marks.append(told(client)["mark"])
            batch.map([Query("wrap text")] * count)
        assert told(client, "7.1", marks[2], marks[0], marks[1], "", "<b>")["since"]["items"] == 3
        assert told(client, "7.1", "", "<b>")["since"] is None

    def test_old_marks_are_forgotten(self, client: FlaskClient) -> None:
        """However many ask, only the latest marks are kept."""
        marks = [told(client)["mark"] for _ in range(MOST_MARKS + 1)]
        assert told(client, marks[1])["since"] is not None
        assert told(client, marks[1])["since"] is None


def test_many_questions_in_one_request(client: FlaskClient, batch: UBatch[Query, Any]) -> None:
    """They are answered as if asked alone, from as few batches as it takes; all or none."""
    texts = ["wrap text", "parse json", "ॐॐॐ", "merge sorted", "wrap text"]
    answers = client.get("/search_many", query_string={"q": texts, "k": 3}).get_json()["answers"]
    assert batch.stats.batches == 2
    assert answers == [client.get("/search", query_string={"q": text, "k": 3}).get_json() for text in texts]
    before = batch.stats.submitted
    for query, reason in {
        "k=3": "q is missing",
        "q=a&q=": "no letters",
        "q=a&" * MOST_QUESTIONS + "q=a": f"more than {MOST_QUESTIONS} times",
        "q=a&k=0": "k must be",
    }.items():
        refused = client.get(f"/search_many?{query}")
        assert refused.status_code == 400 and reason in refused.get_json()["error"]
    assert batch.stats.submitted == before


def parsed(text: str) -> dict[tuple[str, ...], float]:
    """All samples of an exposition: by name and by the labels' values."""
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_metrics_of_a_known_load(client: FlaskClient, batch: UBatch[Query, Any]) -> None:
    """Prometheus reads what the batcher counted; also in the newer format, if it asks for that."""
    batch.map([Query("wrap text")] * 10)
    response = client.get("/metrics")
    assert response.content_type.startswith("text/plain")
    samples = parsed(response.text)
    assert samples["ubatch_items_total", "search"] == 10
    assert samples["ubatch_batches_total", "search", "full"] == 2
    assert samples["ubatch_batch_size_count", "search"] == 3
    assert samples["ubatch_batch_size_bucket", "search", "2.0"] == 1
    assert samples["ubatch_item_wait_seconds_count", "search"] == 10
    assert samples["ubatch_batch_run_seconds_sum", "search"] == pytest.approx(batch.stats.run.sum)
    newer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert newer.content_type.startswith("application/openmetrics-text")
    assert newer.text.endswith("# EOF\n")


def test_the_page_needs_nothing_from_elsewhere(client: FlaskClient) -> None:
    """What it names is served by the application, and its scripts make no markup of text."""
    page = client.get("/").text
    assert "//" not in page
    static = EXAMPLES / "search" / "static"
    for path in static.iterdir():
        with client.get(f"/static/{path.name}") as response:
            assert response.status_code == 200
            assert path.suffix != ".js" or response.mimetype.endswith("/javascript")
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, which nothing fetches
        assert "http:" not in text and "https:" not in text
        assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "@import"))


@pytest.mark.service
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_several_processes(worker: str, preload: bool, cache: Path) -> None:
    """Each request may reach another; `/stats` tells of the one that is reached, `/metrics` of all of them."""
    with Server(worker, processes=2, preload=preload, cache=cache, limit=LIMIT) as server:
        marks: dict[int, str] = {}
        counted = dict.fromkeys(("asked", "told"), 0)

        def ask() -> bool:
            server.get("/search?q=wrap+text")
            counted["asked"] += 1
            seen = look()
            return len(marks) == 2 and counted["asked"] >= 50 and seen

        def look() -> bool:
            seen = server.get("/stats?" + "&".join(f"since={mark}" for mark in marks.values()))
            assert seen["several"]
            assert (seen["since"] is None) == (seen["pid"] not in marks)
            done = seen["since"] or seen["batching"]
            counted["told"] += done["items"]
            marks[seen["pid"]] = seen["mark"]
            return True

        wait_until(ask)
        # Each asks itself once to be warm; with `--preload` it is their parent that does.
        wait_until(lambda: look() and counted["told"] == counted["asked"] + (0 if preload else 2))
        items = counted["asked"] + (1 if preload else 2)
        wait_until(lambda: scraped(server).get(("ubatch_items_total", "search")) == items)
        with closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().will_close, "a kept connection would stay with one process"


def test_a_process_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had queued is shown no more; what it did is, also where there is but one and no files."""
    ended = SimpleNamespace(pid=7)
    gunicorn_conf.child_exit(None, ended)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for name in ("gauge_livesum_7.db", "gauge_livesum_8.db", "counter_7.db"):
        (tmp_path / name).touch()
    gunicorn_conf.child_exit(None, ended)
    assert {path.name for path in tmp_path.iterdir()} == {"gauge_livesum_8.db", "counter_7.db"}


def scraped(server: Server) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"{server.url}metrics", timeout=10) as response:
        return parsed(response.read().decode())


# -- the page in a browser --------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    bool(browser.missing()) or importlib.util.find_spec("selenium") is None,
    reason=browser.missing() or "selenium is not installed",
)


def each(page: Chrome, css: str) -> list[Any]:
    return page.find_elements("css selector", css)


def one(page: Chrome, css: str) -> Any:
    return page.find_element("css selector", css)


def search(page: Chrome, text: str) -> None:
    field = one(page, "#search input")
    field.clear()
    field.send_keys(text)
    one(page, "#search button").click()


def top(page: Chrome, chart: str) -> float:
    """The upper end of a chart's scale."""
    return float(one(page, f"svg[data-chart={chart}]").get_attribute("data-top") or 0)


def lines(page: Chrome, chart: str) -> dict[str, str]:
    """The median's path of each process that has one."""
    paths = {
        path.get_attribute("data-pid"): path.get_attribute("d") for path in each(page, f"[data-chart={chart}] .median")
    }
    return {pid: path for pid, path in paths.items() if path}


@needs_browser
@pytest.mark.service
def test_a_search_and_a_load_in_a_browser(cache: Path) -> None:
    """Hits appear for what is typed, as text; under load from the page the charts of both processes move."""
    with Server(processes=2, cache=cache, limit=LIMIT) as server, chromium() as page:
        page.get(server.url)
        wait_until(lambda: one(page, "#state").get_attribute("data-state") == "live")
        hits = server.get("/search?q=join+a+path")["hits"]
        search(page, "join a path")
        wait_until(lambda: [hit.text for hit in each(page, "#hits b")] == [hit["name"] for hit in hits])
        assert f"{len(hits)} hits in" in one(page, "#told").text
        search(page, '"><script>document.title="broken"</script><img src=x onerror=alert(1)> path')
        wait_until(lambda: "script" in page.current_url)
        search(page, "?!")
        wait_until(lambda: one(page, "#told").text == "q holds no letters or digits")
        assert each(page, "#hits li, #hits script, #hits img") == []
        wait_until(lambda: search(page, "a path") or lines(page, "size"))
        assert top(page, "size") == 4

        one(page, "#load button").click()
        wait_until(lambda: top(page, "size") >= 16)
        wait_until(lambda: len(lines(page, "size")) == len(lines(page, "run")) == 2)
        before = lines(page, "size")
        wait_until(lambda: all(lines(page, "size")[pid] != path for pid, path in before.items()))
        assert {row.get_attribute("data-pid") for row in each(page, "#processes tr")} == before.keys()
        assert one(page, "#state").text == "live, 2 worker processes"
        one(page, "#load button").click()
        wait_until(lambda: one(page, "#load button").text == "Fire load")
        answered = int(one(page, "#fired").text.partition(" ")[0])
        assert answered >= 64
        wait_until(lambda: scraped(server)["ubatch_items_total", "search"] >= answered)

        addresses = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert addresses and all(address.startswith(server.url) for address in addresses)
        problems = [entry["message"] for entry in page.get_log("browser") if "/search?q=%3F%21" not in entry["message"]]
        assert problems == []


@needs_browser
@pytest.mark.service
def test_a_page_that_nobody_looks_at_or_answers(cache: Path) -> None:
    """A hidden page asks nothing; one whose server is gone says so."""
    with chromium() as page:
        with Server(cache=cache, limit=LIMIT) as server:

            def asked() -> int:
                """How often anybody has asked for `/stats`; this counts as well."""
                return int(server.get("/stats")["mark"].partition(".")[2])

            page.get(server.url)
            wait_until(lambda: one(page, "#state").get_attribute("data-state") == "live")
            first = page.current_window_handle
            page.switch_to.new_window("tab")
            at = asked()
            time.sleep(2.5)
            assert asked() - at <= 2, "one poll may have been under way"
            page.close()
            page.switch_to.window(first)
            wait_until(lambda: one(page, "#state").get_attribute("data-state") == "live")
        wait_until(lambda: one(page, "#state").get_attribute("data-state") == "gone")
        assert "does not answer" in one(page, "#state").text
