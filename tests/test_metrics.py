"""What batchers do, as Prometheus and OpenTelemetry see it."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import far
import numpy
import pytest

for package in ("prometheus_client", "opentelemetry.sdk"):
    if importlib.util.find_spec(package.partition(".")[0]) is None or importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402
from prometheus_client import CollectorRegistry, Counter, generate_latest  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from ubatch import (  # noqa: E402
    Flow,
    QueueFull,
    Step,
    UBatch,
    WorkerDied,
    _changes,
    _observing,
    _opentelemetry,
    _prometheus,
    aio,
    metrics,
    observe,
    ubatch_decorator,
)
from ubatch.processes import ProcessExecutor  # noqa: E402
from ubatch.stats import REASONS  # noqa: E402

PATIENCE = 10.0
DASHBOARD = Path(__file__).resolve().parent.parent / "examples" / "grafana.json"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def handler(items: list[Any]) -> list[Any]:
    if "bad" in items:
        raise KeyError
    return items


def eventually(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.001)


def parsed(text: str) -> Samples:
    """All samples of an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples["ubatch_" + name, frozenset(labels.items())]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def scrape(registry: CollectorRegistry) -> Callable[[], Samples]:
    return lambda: parsed(generate_latest(registry).decode())


@pytest.fixture
def all_shown(registry: CollectorRegistry) -> Iterator[None]:
    gc.collect()  # batchers of other tests
    end = metrics.prometheus(registry=registry)
    yield
    end()


# -- Prometheus -------------------------------------------------------------------------------------------


def test_a_known_load_gives_the_known_numbers(all_shown, scrape):
    """As a scrape is read by prometheus_client's own parser."""
    batch = UBatch(4, 0.0, handler=handler, name="measured", max_queue=100)
    with batch:
        batch.map(range(10))
        with pytest.raises(KeyError):
            batch.map([1, "bad"])
        with pytest.raises(QueueFull):
            batch.map(range(101))
    samples = scrape()
    assert value(samples, "items_total", batcher="measured") == 12
    reasons = {reason: value(samples, "batches_total", batcher="measured", reason=reason) for reason in REASONS}
    assert {reason: count for reason, count in reasons.items() if count} == {"full": 2, "idle": 2}
    assert value(samples, "errors_total", batcher="measured", type="KeyError") == 2
    assert value(samples, "unserved_items_total", batcher="measured", cause="rejected") == 101
    assert value(samples, "batch_room_items_total", batcher="measured") == 16
    assert (
        value(samples, "queued_items", batcher="measured") == value(samples, "running_items", batcher="measured") == 0
    )
    buckets = {
        le: value(samples, "batch_size_bucket", batcher="measured", le=le) for le in ("1.0", "2.0", "4.0", "+Inf")
    }
    assert buckets == {"1.0": 0, "2.0": 2, "4.0": 4, "+Inf": 4}
    assert (
        value(samples, "batch_size_count", batcher="measured"),
        value(samples, "batch_size_sum", batcher="measured"),
    ) == (
        4,
        12,
    )
    assert value(samples, "item_wait_seconds_count", batcher="measured") == 12
    assert value(samples, "batch_run_seconds_count", batcher="measured") == 4
    stats = batch.stats
    assert value(samples, "item_wait_seconds_sum", batcher="measured") == pytest.approx(stats.wait.sum)
    assert value(samples, "batch_run_seconds_sum", batcher="measured") == pytest.approx(stats.run.sum)
    assert scrape() == samples, "nothing is counted twice"


@pytest.mark.usefixtures("_processes_may_be_spawned")
def test_child_processes(all_shown, scrape):
    """Calls, bytes, and each child's memory and being there; after it is gone, too."""
    executor = ProcessExecutor(2)
    with UBatch(4, 0.0, handler=far.fate, name="measured", executor=executor) as batch:
        batch.ubatch(numpy.zeros(50_000).tobytes())
        with pytest.raises(WorkerDied):
            batch.ubatch("killed")
        batch.ubatch("c")
        samples = scrape()
        stats = batch.stats.processes
        assert value(samples, "process_deaths_total", batcher="measured") == 1
        assert (
            value(samples, "process_payload_bytes_total", batcher="measured", direction="sent") == stats.sent > 400_000
        )
        assert value(samples, "process_payload_bytes_total", batcher="measured", direction="received") == stats.received
        for name in ("copied", "passed"):
            assert value(samples, "process_buffers_total", batcher="measured", way=name) == getattr(stats, name)
        assert value(samples, "process_handling_seconds_count", batcher="measured") == 2
        assert value(samples, "process_transfer_seconds_sum", batcher="measured") == pytest.approx(stats.transfer.sum)
        up = [value(samples, "process_up", batcher="measured", child=str(n)) for n in range(2)]
        assert max(up) == 1
        memory = [value(samples, "process_memory_bytes", batcher="measured", child=str(n)) for n in range(2)]
        assert memory[up.index(1)] > 1e6
        executor.shutdown()
        assert [value(scrape(), "process_up", batcher="measured", child=str(n)) for n in range(2)] == [0, 0]


def test_times_are_in_their_buckets(all_shown, scrape):
    """A handler's 20 ms are more than 10 ms and less than 50 ms, unless the machine is slow."""
    with UBatch(handler=lambda items: time.sleep(0.02) or items, name="measured") as batch:
        batch.map([1])
        run = batch.stats.run.sum
    samples = scrape()
    for bound in _changes.SECONDS:
        found = value(samples, "batch_run_seconds_bucket", batcher="measured", le=str(bound))
        assert found == (run <= bound) or abs(run - bound) < bound / 8


def test_what_is_going_on_now(all_shown, scrape):
    """Items that wait, and those of batches that run; nothing once the batcher is gone."""
    proceed = threading.Event()

    def stuck(items: list[int]) -> list[int]:
        proceed.wait(PATIENCE)
        return items

    batch = UBatch(2, 0.0, handler=stuck, name="measured")
    futures = [batch.submit(number) for number in range(5)]
    eventually(lambda: batch.stats.running and batch.stats.queued < 5)
    samples = scrape()
    running = value(samples, "running_items", batcher="measured")
    assert 1 <= running <= 2
    assert value(samples, "queued_items", batcher="measured") == 5 - running
    proceed.set()
    assert [future.result(PATIENCE) for future in futures] == [*range(5)]
    batch.stop()
    ref, batch = weakref.ref(batch), None  # type: ignore[assignment]
    eventually(lambda: gc.collect() is not None and ref() is None)
    assert (
        value(scrape(), "queued_items", batcher="measured") == value(scrape(), "running_items", batcher="measured") == 0
    )
    assert value(scrape(), "items_total", batcher="measured") == 5


def test_forgotten_batchers_still_count(all_shown, registry, scrape, monkeypatch):
    """All those of one name together, also if nobody has looked in their lifetimes; however many there were."""
    monkeypatch.setattr(_changes, "MOST_GONE", 10)
    for number in range(30):
        with UBatch(handler=handler, name="measured") as batch:
            batch.map([number])
        if number == 20:
            assert value(scrape(), "items_total", batcher="measured") == 21
        del batch
    eventually(lambda: gc.collect() is not None and value(scrape(), "items_total", batcher="measured") == 30)
    exporter = _prometheus._exporters[registry]
    assert len(exporter._changes._gone) <= 10


def test_a_batcher_that_is_seen_while_it_is_collected(all_shown, registry, scrape, monkeypatch):
    """It counts once, however many look before and after an exporter is told of it, while it may still be found."""
    found: list[Samples] = []

    def look(_: object) -> None:
        for _ in range(2):
            thread = threading.Thread(target=lambda: found.append(scrape()))
            thread.start()
            thread.join()

    monkeypatch.setattr(_observing, "mourners", [lambda: look, *_observing.mourners, lambda: look])
    with UBatch(handler=handler, name="measured") as batch:
        batch.map([1, 2])
    number = batch._number
    del batch
    eventually(lambda: gc.collect() is not None and len(found) == 4)
    found.append(scrape())
    assert [value(samples, "items_total", batcher="measured") for samples in found[2:]] == [2, 2, 2]
    assert number not in _prometheus._exporters[registry]._changes._seen


def test_a_look_from_a_signal_handler(all_shown, scrape, monkeypatch):
    """One that comes upon another look, wherever: nothing is told twice, no number goes down, and no scrape fails."""
    batch = UBatch(handler=handler, name="measured")
    other = UBatch(handler=handler, name="other")
    read, nested = UBatch.stats.fget, []

    def interrupted(self: Any) -> Any:
        stats = read(self)
        if nested:
            nested.pop()
            batch.map([1])
            assert value(scrape(), "items_total", batcher="measured") == 1
        return stats

    with batch, other:
        batch.map([1])
        scrape()
        nested += [1]
        with monkeypatch.context() as patch:
            patch.setattr(UBatch, "stats", property(interrupted))
            found = scrape()
        assert 1 <= value(found, "items_total", batcher="measured") <= 2
        assert value(scrape(), "items_total", batcher="measured") == 2


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_snapshot_that_fails_loses_nothing(all_shown, registry, scrape, monkeypatch, caplog, error):
    """Nor does a look that is interrupted: the next tells all."""
    batches = [UBatch(handler=handler, name=f"measured {number}") for number in range(3)]
    read = UBatch.stats.fget

    def stats(self: Any) -> Any:
        if self is batches[1]:
            raise error
        return read(self)

    for batch in batches:
        with batch:
            batch.map([1])
    with monkeypatch.context() as patch:
        patch.setattr(UBatch, "stats", property(stats))
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                scrape()
        else:
            assert value(scrape(), "items_total", batcher="measured 2") == 1
            assert "'measured 1': its statistics cannot be told" in caplog.text
    found = scrape()
    assert [value(found, "items_total", batcher=f"measured {number}") for number in range(3)] == [1, 1, 1]


def test_a_batcher_that_gets_its_name_late(all_shown, scrape):
    """What it did before counts for the name that it had."""
    batch: UBatch[int, int] = UBatch(max_queue=1)
    with pytest.warns(RuntimeWarning, match="items wait"):
        batch.submit(1)
    with pytest.raises(QueueFull):
        batch.submit(2)
    assert value(scrape(), "unserved_items_total", batcher="ubatch", cause="rejected") == 1
    batch.set_handler(handler)
    with batch:
        eventually(lambda: not batch.stats.queued)
        batch.map([3])
    samples = scrape()
    assert value(samples, "unserved_items_total", batcher="ubatch", cause="rejected") == 1
    assert value(samples, "unserved_items_total", batcher="handler", cause="rejected") == 0
    assert value(samples, "items_total", batcher="handler") == 2


def test_batchers_of_both_kinds_and_decorated_functions(registry, scrape):
    """Chosen one by one, in one registry, until their ends are called; then the registry is free again."""
    function = ubatch_decorator(handler)
    loop = aio.UBatch(handler=handler, name="loop, in a thread")
    other = UBatch(handler=handler, name="other")
    ends = [metrics.prometheus(function, registry), metrics.prometheus(loop, registry)]
    with function.batcher, other:
        function.map([1, 2])
        other.map([3])
    asyncio.run(_ask(loop, [1, 2, 3]))
    samples = scrape()
    assert value(samples, "items_total", batcher="handler") == 2
    assert value(samples, "items_total", batcher="loop, in a thread") == 3
    assert {dict(labels).get("batcher") for _, labels in samples} == {"handler", "loop, in a thread"}
    ends[0]()
    asyncio.run(_ask(loop, [4]))
    with function.batcher:
        function.map([5])
    samples = scrape()
    assert value(samples, "items_total", batcher="loop, in a thread") == 4
    assert value(samples, "items_total", batcher="handler") == 2
    ends[1]()
    assert scrape() == {}
    Counter("ubatch_items", "Somebody else's.", registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.prometheus(registry=registry)
    with pytest.raises(TypeError, match="batcher must be"):
        metrics.prometheus("measured", registry)


def test_whoever_wants_it_ends_his_own(registry, scrape):
    """All, twice, and one as well: nothing is counted twice, and an end that is called again ends nobody else's."""
    batch, other = UBatch(handler=handler, name="measured"), UBatch(handler=handler, name="other")
    ends = [metrics.prometheus(chosen, registry) for chosen in (None, None, batch)]
    with batch, other:
        batch.map([1])
        other.map([1])
        assert value(scrape(), "items_total", batcher="measured") == 1
        ends[0]()
        ends[0]()
        other.map([1])
        assert value(scrape(), "items_total", batcher="other") == 2
        ends[1]()
        batch.map([1])
        other.map([1])
        samples = scrape()
        assert value(samples, "items_total", batcher="measured") == 2
        assert value(samples, "items_total", batcher="other") == 2
        ends[2]()
        assert scrape() == {}
        batch.map([1])
        end = metrics.prometheus(batch, registry)
        assert value(scrape(), "items_total", batcher="measured") == 3, "what was done meanwhile, and nothing twice"
        ends[2]()
        assert value(scrape(), "items_total", batcher="measured") == 3
        end()


def test_a_forgotten_batcher_ends_nothing(registry, scrape):
    """One that was chosen is kept, with what it did, until its own end is called; that of another ends the other's."""
    batch, other = UBatch(handler=handler, name="measured"), UBatch(handler=handler, name="other")
    ends = [metrics.prometheus(batch, registry), metrics.prometheus(other, registry)]
    with batch, other:
        batch.map([1])
        other.map([1])
    ref = weakref.ref(batch)
    del batch
    eventually(lambda: gc.collect() is not None and ref() is None)
    ends[1]()
    assert value(scrape(), "items_total", batcher="measured") == 1
    ends[0]()
    assert scrape() == {}


def test_somebody_else_takes_it_out_of_the_registry(registry, scrape):
    """Then its end has nothing to do there, and it can be put there again."""
    end = metrics.prometheus(registry=registry)
    registry.unregister(_prometheus._exporters[registry])
    end()
    end = metrics.prometheus(registry=registry)
    with UBatch(handler=handler, name="measured") as batch:
        batch.map([1])
    assert value(scrape(), "items_total", batcher="measured") == 1
    end()


def test_a_registry_that_is_forgotten_without_an_end():
    """Its exporter goes with it."""
    gc.collect()
    before = len(_observing.mourners)
    for _ in range(3):
        metrics.prometheus(registry=CollectorRegistry())
    eventually(lambda: gc.collect() is not None and len(_observing.mourners) == before)
    assert not [one for one in _observing._everywhere if isinstance(one, _prometheus._Exporter)]


@pytest.mark.parametrize(
    ("way", "name"),
    [(metrics.prometheus, "registry"), (metrics.opentelemetry, "meter_provider"), (metrics.traces, "tracer_provider")],
)
@pytest.mark.parametrize("wrong", ["nonsense", 1])
def test_what_is_no_registry_and_no_provider(way, name, wrong):
    with pytest.raises(TypeError, match=f"^{name} must .* not {wrong!r}$"):
        way(**{name: wrong})


def number_of_living(name: str) -> int:
    return sum(batcher.name == name for batcher in _observing.batchers())


@pytest.mark.usefixtures("_processes_may_be_spawned")
def test_batchers_that_share_an_executor_one_after_another(all_shown, scrape):
    """Each has the calls that were made since it was made, and all together none twice; children are those of now."""
    with ProcessExecutor(1) as executor:
        for number in range(5):
            with UBatch(handler=far.fate, executor=executor, name="measured") as batch:
                batch.map([str(number)])
            assert batch.stats.processes.calls == 1
            del batch
        assert executor.stats.calls == 5
        eventually(lambda: gc.collect() is not None and not number_of_living("measured"))
        samples = scrape()
    assert value(samples, "process_handling_seconds_count", batcher="measured") == 5
    assert ("ubatch_process_up", frozenset({("batcher", "measured"), ("child", "1")})) not in samples


def test_a_flow_is_all_its_steps(registry, scrape):
    """To metrics, and to observers."""
    seen: list[str] = []
    flow = Flow(Step(handler, name="first"), Step(handler, name="second"), name="flow")
    ends = [metrics.prometheus(flow, registry), observe(lambda record: seen.append(record.batcher), flow)]
    with flow, UBatch(handler=handler, name="other") as other:
        flow.map([1])
        other.map([1])
        samples = scrape()
        assert {dict(labels).get("batcher") for _, labels in samples} == {"flow.first", "flow.second"}
        assert value(samples, "items_total", batcher="flow.second") == 1
        for end in ends:
            end()
        flow.map([1])
    assert (scrape(), seen) == ({}, ["flow.first", "flow.second"])
    for wrong in ((), flow.stats, [flow]):
        with pytest.raises(TypeError, match="a UBatch, a decorated function or a Flow, not"):
            observe(print, wrong)


async def _ask(batch: Any, items: list[Any]) -> Any:
    batch.start()
    results = await batch.map(items)
    await batch.stop()
    return results


def test_scrapes_under_load(all_shown, scrape, hurry):
    """From several threads at once, and beside a load: nothing is lost, and no counter goes back."""
    over = threading.Event()
    failures: list[BaseException] = []

    def look() -> None:
        try:
            before = 0.0
            while not over.is_set():
                samples = scrape()
                after = samples.get(("ubatch_items_total", frozenset({("batcher", "measured")})), 0.0)
                assert after >= before
                before = after
        except BaseException as error:
            failures.append(error)

    def call() -> None:
        for _ in range(300):
            batch.ubatch(1)

    with UBatch(handler=handler, name="measured") as batch:
        lookers = [threading.Thread(target=look) for _ in range(3)]
        callers = [threading.Thread(target=call) for _ in range(8)]
        for thread in (*lookers, *callers):
            thread.start()
        for thread in callers:
            thread.join()
        over.set()
        for thread in lookers:
            thread.join()
    assert failures == []
    assert value(scrape(), "items_total", batcher="measured") == value(
        scrape(), "item_wait_seconds_count", batcher="measured"
    )
    assert value(scrape(), "items_total", batcher="measured") == 2400


def test_a_process_of_several(run_python, tmp_path):
    """Where a scrape reads files, each process writes its own, forked ones too, by a thread that its batches begin."""
    printed = run_python(
        """
        import os, threading, time, warnings
        import ubatch, ubatch.metrics
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        from prometheus_client import CollectorRegistry, multiprocess
        ubatch._prometheus.INTERVAL = 0.01
        end = ubatch.metrics.prometheus()
        batch = ubatch.UBatch(handler=lambda items: items, name="measured")
        def items():
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            with ubatch._prometheus._writing:  # prometheus_client cannot read a file that is just being made
                return registry.get_sample_value("ubatch_items_total", {"batcher": "measured"})
        def until(number):
            while items() != number:
                time.sleep(0.01)
        def threads():
            return sum(thread.name == "ubatch-metrics" for thread in threading.enumerate())
        assert threads() == 0
        batch.map(range(10))
        until(10)
        assert threads() == 1
        pid = os.fork()
        if not pid:
            assert threads() == 0
            batch.map(range(3))
            until(13)
            batch.map(range(2))
            until(15)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        batch.map([1])
        until(16)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        assert registry.get_sample_value("ubatch_item_wait_seconds_count", {"batcher": "measured"}) == 16
        assert registry.get_sample_value("ubatch_batch_size_bucket", {"batcher": "measured", "le": "2.0"}) == 2
        assert registry.get_sample_value("ubatch_queued_items", {"batcher": "measured"}) == 0
        ubatch._prometheus.INTERVAL = 60
        time.sleep(0.05)
        end()
        while threads():
            time.sleep(0.01)
        print("ended")
        """,
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )
    assert printed == "ended\n"


def test_files_of_a_process_that_is_shown_again(run_python, tmp_path):
    """What is in its file already is not added to it once more."""
    printed = run_python(
        """
        import time
        import ubatch, ubatch.metrics
        from prometheus_client import CollectorRegistry, multiprocess
        ubatch._prometheus.INTERVAL = 0.01
        batch = ubatch.UBatch(handler=lambda items: items, name="measured")
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        items = lambda: registry.get_sample_value("ubatch_items_total", {"batcher": "measured"})
        for number in range(1, 4):
            end = ubatch.metrics.prometheus()
            batch.map([1])
            while True:
                with ubatch._prometheus._writing:  # prometheus_client cannot read a file that is just being made
                    if (items() or 0) >= number:
                        break
                time.sleep(0.01)
            end()
            print(items())
        """,
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )
    assert printed == "1.0\n2.0\n3.0\n"


def test_what_the_last_moments_brought_is_written_at_exit(run_python, tmp_path):
    """A process that ends before its thread writes loses nothing."""
    run_python(
        """
        import ubatch, ubatch.metrics
        ubatch.metrics.prometheus()
        ubatch.UBatch(handler=lambda items: items, name="measured").map(range(10))
        """,
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )
    from prometheus_client import multiprocess

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(tmp_path))
    assert registry.get_sample_value("ubatch_items_total", {"batcher": "measured"}) == 10


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_what_a_child_of_multiprocessing_did_is_written_at_its_end(run_python, tmp_path, how):
    """However it was started, and although nothing of `atexit` is done in one that was forked."""
    (tmp_path / "files").mkdir()
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import multiprocessing, ubatch, ubatch.metrics

def work():
    with ubatch.UBatch(handler=list, name="measured") as batch:
        batch.map(range(10))

ubatch.metrics.prometheus()
if __name__ == "__main__":
    work()
    child = multiprocessing.get_context({how!r}).Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
"""
    )
    run_python(
        f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')"
        if how == "fork"
        else f"import subprocess, sys; subprocess.run([sys.executable, {str(program)!r}], check=True)",
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "files"), "PYTHONPATH": os.pathsep.join(sys.path)},
        options=["-W", "ignore::DeprecationWarning"],  # of forks beside threads
    )
    assert written(tmp_path / "files")("ubatch_items_total", {"batcher": "measured"}) == 20


def written(files: Path) -> Callable[..., float | None]:
    """The values of samples, as a scrape reads them."""
    from prometheus_client import multiprocess

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(files))
    return registry.get_sample_value


def test_the_exit_is_written_after_batchers_were_stopped(run_python, tmp_path):
    """What was queued is given up, and what ran has run, when the last is written."""
    run_python(
        """
        import time, ubatch, ubatch.metrics
        ubatch.metrics.prometheus()
        batch = ubatch.UBatch(4, 0, handler=lambda items: time.sleep(0.3) or items, name="measured")
        futures = [batch.submit(number) for number in range(12)]
        while batch.stats.running != 4:
            time.sleep(0.001)
        """,
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )
    of = {"batcher": "measured"}
    sample = written(tmp_path)
    assert sample("ubatch_batch_run_seconds_count", of) == 1
    assert sample("ubatch_unserved_items_total", {**of, "cause": "dropped"}) == 8
    assert sample("ubatch_queued_items", of) in (0, None)  # of processes that live


def test_files_have_everything_once_whatever_the_registry(run_python, tmp_path):
    """Several registries are one, also where a registry is one for such files itself."""
    printed = run_python(
        """
        import ubatch, ubatch.metrics
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        ends = [ubatch.metrics.prometheus(registry=one) for one in (CollectorRegistry(), None, registry)]
        with ubatch.UBatch(handler=list, name="measured") as batch:
            batch.map(range(10))
        for end in ends:
            end()
        print([line for line in generate_latest(registry).decode().splitlines() if line.startswith("ubatch_items")])
        """,
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )
    assert printed == """['ubatch_items_total{batcher="measured"} 10.0']\n"""


def test_files_that_cannot_be_written(run_python, tmp_path):
    """That is told once, and the thread goes on; who ends it is told, and then it has ended."""
    files = tmp_path / "files"
    files.mkdir()
    printed = run_python(
        """
        import logging, os, shutil, threading, time
        import ubatch, ubatch.metrics
        from ubatch import _observing
        folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
        ubatch._prometheus.INTERVAL = 0.01
        logging.basicConfig(format="%(message)s")
        told = []
        logging.getLogger("ubatch").addFilter(lambda record: told.append(record.getMessage()))
        end = ubatch.metrics.prometheus()
        [exporter] = ubatch._prometheus._exporters.values()
        shutil.rmtree(folder)
        tries = []
        flush = exporter.flush
        exporter.flush = lambda: tries.append(1) or flush()
        batch = ubatch.UBatch(handler=list, name="measured").start()
        batch.map([1])
        while len(tries) < 5:
            time.sleep(0.01)
        assert [message for message in told if "prometheus_client" in message] == told and len(told) == 1, told
        try:
            end()
        except FileNotFoundError:
            print("told")
        end()
        while any(thread.name == "ubatch-metrics" for thread in threading.enumerate()):
            time.sleep(0.01)
        assert not exporter.is_wanted and not batch._recorder.attentive
        """,
        env={"PROMETHEUS_MULTIPROC_DIR": str(files)},
    )
    assert printed == "told\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_many_threads_fork(run_python):
    """At once, beside scrapes, with two registries: none waits for another for ever."""
    printed = run_python(
        """
        import os, sys, threading, warnings
        import ubatch.metrics
        from prometheus_client import CollectorRegistry, generate_latest
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        registries = [CollectorRegistry(), CollectorRegistry()]
        for registry in registries:
            ubatch.metrics.prometheus(registry=registry)
        sys.setswitchinterval(1e-4)
        def fork():
            for _ in range(60):
                pid = os.fork()
                if not pid:
                    generate_latest(registries[0])
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
                generate_latest(registries[1])
        threads = [threading.Thread(target=fork) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("all")
        """
    )
    assert printed == "all\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_batchers_that_a_child_forgets_before_its_first_look(run_python):
    """What they did is told, to both kinds of exporters; what the parent did is not, but where it is there already."""
    printed = run_python(
        """
        import gc, os, sys, warnings, ubatch, ubatch.metrics
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from prometheus_client import CollectorRegistry
        registry, reader = CollectorRegistry(), InMemoryMetricReader()
        ubatch.metrics.prometheus(registry=registry)
        ubatch.metrics.opentelemetry(meter_provider=MeterProvider([reader], shutdown_on_exit=False))
        def work(count):
            with ubatch.UBatch(handler=list, name="measured") as batch:
                batch.map(range(count))
            del batch
            gc.collect()
        def look():
            [found] = reader.get_metrics_data().resource_metrics
            points = {metric.name: metric.data.data_points for metric in found.scope_metrics[0].metrics}
            shown = registry.get_sample_value("ubatch_items_total", {"batcher": "measured"})
            print(shown, points["ubatch.items"][0].value)
        work(1)
        look()
        work(100)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            work(10)
            look()
            work(10)
            look()
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        look()
        """
    )
    assert printed.splitlines() == ["1.0 1", "11.0 10", "21.0 20", "101.0 101"]


# -- OpenTelemetry ----------------------------------------------------------------------------------------


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    return {
        metric.name: list(metric.data.data_points)
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_opentelemetry_measures_the_same():
    """Counters are read from snapshots, histograms are fed by batches."""
    gc.collect()  # batchers of other tests
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    end = metrics.opentelemetry(meter_provider=provider)
    with UBatch(4, 0.0, handler=handler, name="measured") as batch:
        batch.map(range(10))
        with pytest.raises(KeyError):
            batch.map([1, "bad"])
    found = points(reader)
    mine = {"ubatch.batcher.name": "measured"}

    def of(name: str, **attributes: str) -> Any:
        wanted = {**mine, **{key.replace("_", "."): text for key, text in attributes.items()}}
        return next(point for point in found[name] if dict(point.attributes) == wanted)

    assert of("ubatch.items").value == 12
    assert of("ubatch.batches", ubatch_batch_reason="full").value == 2
    assert of("ubatch.errors", error_type="KeyError").value == 2
    assert of("ubatch.unserved_items", ubatch_cause="dropped").value == 0
    assert of("ubatch.items.queued").value == of("ubatch.items.running").value == 0
    assert (of("ubatch.batch.size").count, of("ubatch.batch.size").sum) == (4, 12)
    assert of("ubatch.batch.duration").sum == pytest.approx(batch.stats.run.sum)
    assert of("ubatch.item.wait_time").count == 12
    assert "ubatch.process.deaths" not in found
    found = points(reader)
    assert of("ubatch.items").value == 12, "they add up, and nothing twice"
    end()
    end()
    with batch:
        batch.map([1])
    assert all(point.value <= 12 for point in points(reader).get("ubatch.items", []))
    provider.shutdown()


@pytest.fixture
def measured() -> Iterator[tuple[MeterProvider, Callable[[], dict[tuple[str, str], float]]]]:
    """A provider, and what it has of each batcher: items counted, and batches and items told to histograms."""
    gc.collect()  # batchers of other tests
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)

    def look() -> dict[tuple[str, str], float]:
        return {
            (str(point.attributes["ubatch.batcher.name"]), name): getattr(point, what)
            for name, some in points(reader).items()
            for point in some
            for what in [WHAT.get(name)]
            if what is not None
        }

    yield provider, look
    provider.shutdown()


WHAT = {"ubatch.items": "value", "ubatch.items.queued": "value", "ubatch.batch.size": "sum"}


def test_one_provider_serves_many_calls(measured):
    """Each batcher has counters, gauges and histograms, also after the other's end."""
    provider, look = measured
    batch, other = UBatch(handler=handler, name="measured"), UBatch(handler=handler, name="other")
    ends = [metrics.opentelemetry(chosen, provider) for chosen in (batch, other)]
    with batch, other:
        batch.map([1])
        other.map([1, 2])
        expected = {("measured", "ubatch.items"): 1, ("other", "ubatch.items"): 2}
        expected |= {("measured", "ubatch.items.queued"): 0, ("other", "ubatch.items.queued"): 0}
        expected |= {("measured", "ubatch.batch.size"): 1, ("other", "ubatch.batch.size"): 2}
        eventually(lambda: look() == expected)
        batch.map([3])
        ends[0]()
        ends[0]()
        batch.map([4])
        other.map([5])
    found = look()
    assert (found["other", "ubatch.items"], found["other", "ubatch.batch.size"]) == (3, 3)
    assert (found["measured", "ubatch.items"], found["measured", "ubatch.batch.size"]) == (2, 2)
    ends[1]()


def test_on_and_off_and_on_again(measured):
    """Counters go on, with what was done before and meanwhile; histograms with what is done while it is on."""
    provider, look = measured
    with UBatch(handler=handler, name="measured") as batch:
        batch.map([1])
        for number in range(1, 4):
            end = metrics.opentelemetry(meter_provider=provider)
            batch.map([1, 2])
            eventually(lambda: look()["measured", "ubatch.batch.size"] == 2 * number)  # noqa: B023
            assert look()["measured", "ubatch.items"] == 3 * number
            assert look()["measured", "ubatch.items.queued"] == 0
            end()
            assert ("measured", "ubatch.items") not in look()
            batch.map([1])


@pytest.mark.parametrize("choices", [(0, 0), (0, 1), (1, 0), (1, 1), (1, 0, 1)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["the first ends first", "the last ends first"])
def test_each_batch_is_told_once_per_provider(measured, tracing, choices, last):
    """However often it is wanted, for all (0) or for itself (1); until nobody wants it."""
    provider, look = measured
    traces, exported = tracing
    tracer = traces.get_tracer("test")
    batch = UBatch(handler=handler, name="measured")
    ends = []
    for choice in choices:
        chosen = batch if choice else None
        ends.append((metrics.opentelemetry(chosen, provider), metrics.traces(chosen, traces)))
    with batch:
        for number in range(1, len(ends) + 1):
            with tracer.start_as_current_span("caller"):
                batch.map([1])
            eventually(lambda: len(exported()["batch measured"]) == number)  # noqa: B023
            found = look()
            assert found["measured", "ubatch.items"] == found["measured", "ubatch.batch.size"] == number
            assert len(exported()["item measured"]) == number
            for end in ends.pop(-1 if last else 0):
                end()
                end()
        batch.map([1])
    assert batch._recorder.observers == ()
    assert look() == {("measured", "ubatch.batch.size"): len(choices)}


@pytest.mark.parametrize("explicit", [False, True])
def test_the_global_providers_may_be_set_later(run_python, explicit):
    """Those who ask before, after, and for the provider itself share what there is: each batch is told once."""
    printed = run_python(
        f"""
        import ubatch, ubatch.metrics
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
        meters, tracers = MeterProvider([reader]), TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        ends = [ubatch.metrics.opentelemetry(), ubatch.metrics.traces()]
        metrics.set_meter_provider(meters)
        trace.set_tracer_provider(tracers)
        batch = ubatch.UBatch(handler=lambda items: items, name="measured")
        for number in range(2):
            given = (meters, tracers) if {explicit} else (None, None)
            new = [ubatch.metrics.opentelemetry(None, given[0]), ubatch.metrics.traces(None, given[1])]
            with batch:
                batch.map([1])
            for end in ends:
                end()
            ends = new
        def collected():
            [one] = reader.get_metrics_data().resource_metrics
            points = {{metric.name: metric.data.data_points for scope in one.scope_metrics for metric in scope.metrics}}
            return [points[name][0] for name in ("ubatch.items", "ubatch.batch.size")]
        items, sizes = collected()
        print(items.value, sizes.sum, len(exporter.get_finished_spans()))
        """
    )
    assert printed == "2 2 2\n"


@pytest.mark.parametrize("chosen", [True, False], ids=["one", "all"])
@pytest.mark.parametrize("is_ended", [True, False], ids=["ended", "still on"])
def test_forgotten_providers_and_batchers_are_collected(registry, chosen, is_ended):
    """Ends hold no batcher, and nothing once they were called; one that is never called keeps nothing but for all."""
    gc.collect()
    mourners = len(_observing.mourners)
    batch = UBatch(handler=handler, name="measured")
    providers = [MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)]
    providers += [TracerProvider(shutdown_on_exit=False), CollectorRegistry()]
    ways = [metrics.opentelemetry, metrics.traces, metrics.prometheus]
    ends = [way(batch if chosen else None, provider) for way, provider in zip(ways, providers, strict=True)]
    ends.append(observe(print, batch))
    refs = [weakref.ref(provider) for provider in providers]
    ref = weakref.ref(batch)
    if is_ended:
        for end in ends:
            end()
    del providers
    batch = None  # type: ignore[assignment]
    eventually(lambda: gc.collect() is not None and ref() is None)
    if not chosen:
        for end in ends:
            end()
    if not is_ended:
        ends.clear()
    eventually(lambda: gc.collect() is not None and all(ref() is None for ref in refs))
    assert len(_observing.mourners) == mourners


def test_many_threads_begin_and_end(measured, registry, scrape, hurry):
    """All and one, beside a load and scrapes: in the end nobody wants anything, and nothing is lost or told twice."""
    provider, look = measured
    batch = UBatch(handler=handler, name="measured")
    failures: list[BaseException] = []
    keeps = [metrics.opentelemetry(batch, provider), metrics.prometheus(batch, registry)]

    def switch(seed: int) -> None:
        try:
            for number in range(30):
                chosen = batch if (seed + number) % 2 else None
                ends = [metrics.opentelemetry(chosen, provider), metrics.prometheus(chosen, registry)]
                batch.ubatch(1)
                scrape()
                look()
                for end in ends:
                    threading.Thread(target=end).start()
                    end()
        except BaseException as error:
            failures.append(error)

    with batch:
        threads = [threading.Thread(target=switch, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    found = look()
    assert found["measured", "ubatch.items"] == found["measured", "ubatch.batch.size"] == 120
    assert value(scrape(), "items_total", batcher="measured") == 120
    for keep in keeps:
        keep()
    eventually(lambda: ("measured", "ubatch.items") not in look() and scrape() == {})
    eventually(lambda: batch._recorder.observers == ())


@pytest.mark.usefixtures("_processes_may_be_spawned")
def test_opentelemetry_measures_child_processes():
    gc.collect()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    end = metrics.opentelemetry(meter_provider=provider)
    with ProcessExecutor(1) as executor, UBatch(handler=far.fate, name="measured", executor=executor) as batch:
        batch.ubatch("a")
        found = {
            (
                name,
                *sorted((key, text) for key, text in point.attributes.items() if key != "ubatch.batcher.name"),
            ): point
            for name, some in points(reader).items()
            for point in some
            if point.attributes.get("ubatch.batcher.name") == "measured"
        }
        stats = batch.stats.processes
    assert found[("ubatch.process.deaths",)].value == 0
    for way in ("sent", "received"):
        assert found["ubatch.process.payload", ("ubatch.direction", way)].value == getattr(stats, way) > 0
    for name in ("transfer", "handling"):
        assert found[(f"ubatch.process.{name}_time",)].value == pytest.approx(getattr(stats, name).sum)
    assert found["ubatch.process.up", ("ubatch.process.place", 0)].value == 1
    assert found["ubatch.process.memory", ("ubatch.process.place", 0)].value > 1e6
    end()
    provider.shutdown()


@pytest.mark.usefixtures("_processes_may_be_spawned")
def test_what_opentelemetry_keeps_does_not_grow(measured):
    """However often it is collected; and each collection takes one snapshot of each batcher."""
    provider, look = measured
    end = metrics.opentelemetry(meter_provider=provider)
    looks: list[None] = []

    class Counted(UBatch[Any, Any]):
        @property
        def stats(self) -> Any:
            looks.append(None)
            return super().stats

    with ProcessExecutor(2) as executor, Counted(handler=far.fate, executor=executor, name="measured") as batch:
        for number in range(1, 6):
            batch.ubatch("a")
            looks.clear()
            assert look()["measured", "ubatch.items"] == number
            assert len(looks) == 1
        meters = _opentelemetry._measuring._made[provider]()
        assert meters._changes.totals["measured"].processes.children == ()
        assert meters._changes.totals["measured"].processes.calls == 5
    end()


def test_histograms_of_opentelemetry_have_the_bounds_of_those_of_prometheus():
    gc.collect()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    end = metrics.opentelemetry(meter_provider=provider)
    with UBatch(handler=handler, name="measured") as batch:
        batch.map([1])
    eventually(lambda: "ubatch.item.wait_time" in points(reader))
    found = points(reader)
    for name, bounds in (
        ("ubatch.batch.size", _changes.ITEMS),
        ("ubatch.batch.duration", _changes.SECONDS),
        ("ubatch.item.wait_time", _changes.SECONDS),
    ):
        assert found[name][0].explicit_bounds == bounds
    end()
    provider.shutdown()


def test_a_provider_that_knows_of_no_bounds(measured):
    """As one of before the API had them: its own are used."""
    provider, look = measured

    class Meter:
        def __init__(self, meter: Any) -> None:
            self._meter = meter

        def create_histogram(self, name: str, unit: str = "", description: str = "") -> Any:
            return self._meter.create_histogram(name, unit, description)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._meter, name)

    class Provider:
        def get_meter(self, name: str) -> Any:
            return Meter(provider.get_meter(name))

    old = Provider()
    end = metrics.opentelemetry(meter_provider=old)
    with UBatch(handler=handler, name="measured") as batch:
        batch.map([1, 2])
    eventually(lambda: look().get(("measured", "ubatch.batch.size")) == 2)
    end()


@pytest.fixture
def tracing() -> Iterator[tuple[TracerProvider, Callable[[], dict[str, list[Any]]]]]:
    """A provider, and what was exported, by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def exported() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for span in exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found

    yield provider, exported
    provider.shutdown()


@pytest.fixture
def spans(tracing: Any) -> Iterator[tuple[Any, Callable[[], dict[str, list[Any]]]]]:
    """A tracer, and what was exported; all batches are traced."""
    provider, exported = tracing
    end = metrics.traces(tracer_provider=provider)
    yield provider.get_tracer("test"), exported
    end()


def test_a_batch_is_linked_to_its_callers(spans):
    """Each from a thread and a span of its own; each caller's trace has its item, linked to the batch."""
    tracer, exported = spans

    def traced(items: list[int]) -> list[int]:
        with tracer.start_as_current_span("inside"):
            return items

    def call(number: int) -> None:
        with tracer.start_as_current_span(f"caller {number}"):
            batch.ubatch(number)

    with UBatch(3, PATIENCE, handler=traced, name="measured") as batch:
        threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = exported()
    [one], [inside], items = found["batch measured"], found["inside"], found["item measured"]
    callers = {found[f"caller {number}"][0].context.span_id: found[f"caller {number}"][0] for number in range(3)}
    assert one.parent is None
    assert {link.context.span_id for link in one.links} == callers.keys()
    assert inside.parent.span_id == one.context.span_id
    assert {item.parent.span_id for item in items} == callers.keys()
    for item in items:
        assert [link.context.span_id for link in item.links] == [one.context.span_id]
        assert item.context.trace_id == callers[item.parent.span_id].context.trace_id
        assert callers[item.parent.span_id].start_time <= item.end_time == one.end_time
        assert item.start_time <= one.start_time <= inside.start_time <= inside.end_time <= one.end_time
    assert dict(one.attributes) == {
        "ubatch.batcher.name": "measured", "ubatch.batch.size": 3, "ubatch.batch.reason": "full",
    }  # fmt: skip
    assert one.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("plain", [False, True], ids=["coroutine", "plain function"])
def test_a_batch_of_an_event_loop_is_linked_to_its_callers(spans, plain):
    """Each a task of its own; what the handler does is below the batch, also in its thread."""
    tracer, exported = spans

    def inside(items: list[int]) -> list[int]:
        with tracer.start_as_current_span("inside"):
            return items

    async def coroutine(items: list[int]) -> list[int]:
        return inside(items)

    batch = aio.UBatch(3, PATIENCE, handler=inside if plain else coroutine, name="measured")

    async def call(number: int) -> None:
        with tracer.start_as_current_span(f"caller {number}"):
            await batch.ubatch(number)

    async def main() -> None:
        await asyncio.gather(*map(call, range(3)))
        await batch.stop()

    asyncio.run(main())
    found = exported()
    [one] = found["batch measured"]
    callers = {found[f"caller {number}"][0].context.span_id for number in range(3)}
    assert (
        {link.context.span_id for link in one.links}
        == {item.parent.span_id for item in found["item measured"]}
        == callers
    )
    assert found["inside"][0].parent.span_id == one.context.span_id


def test_a_batch_that_fails_is_an_error(spans):
    """By its type, with the exception; callers without a span have no item in any trace."""
    _, exported = spans
    with UBatch(handler=handler, name="measured") as batch, pytest.raises(KeyError):
        batch.map([1, "bad"])
    found = exported()
    [one] = found["batch measured"]
    assert one.status.status_code is StatusCode.ERROR
    assert (one.attributes["error.type"], one.attributes["ubatch.batch.errors"]) == ("KeyError", 2)
    assert [event.name for event in one.events] == ["exception"]
    assert one.links == () and "item measured" not in found


class Mute(Exception):
    """Cannot say what it is about."""

    def __str__(self) -> str:
        raise SystemExit if self.args == ("exit",) else RuntimeError


@pytest.mark.parametrize("text", ["exit", "error"])
def test_an_exception_without_a_text_ends_all_spans(spans, text):
    """Whatever its `__str__` does: the batch's, as an error of its type, and those of the items."""
    tracer, exported = spans

    def failing(items: list[Any]) -> list[Any]:
        raise Mute(text)

    with (
        UBatch(handler=failing, name="measured") as batch,
        tracer.start_as_current_span("caller"),
        pytest.raises(Mute),
    ):
        batch.map([1, 2])
    found = exported()
    [one] = found["batch measured"]
    assert (one.status.status_code, one.attributes["error.type"]) == (StatusCode.ERROR, "Mute")
    assert [item.end_time for item in found["item measured"]] == [one.end_time] * 2


# -- the dashboard ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not DASHBOARD.exists(), reason="the examples are not here")
@pytest.mark.usefixtures("_processes_may_be_spawned")
def test_the_dashboard_shows_what_there_is(all_shown, registry):
    """Each metric that it names is there, with the labels that it names, and each that is there is named."""
    with (
        ProcessExecutor(1) as executor,
        UBatch(handler=far.fate, name="measured", executor=executor) as batch,
        pytest.raises(ValueError),
    ):
        batch.map(["raise"])
    samples = parsed(generate_latest(registry).decode())
    labels = {}
    for name, pairs in samples:
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    assert len(queries) > 14
    named = set(re.findall(r"\bubatch_\w+", " ".join(queries)))
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        names = {sample.name for sample in family.samples if not sample.name.endswith("_created")}
        assert names & named or not names, family.name
    for query in queries:
        found = re.findall(r"\bubatch_\w+", query)
        assert found and set(found) <= labels.keys(), query
        for by in re.findall(r"by \(([^)]*)\)", query):
            assert {label.strip() for label in by.split(",")} <= set().union(*(labels[name] for name in found)), query


# -- gunicorn ---------------------------------------------------------------------------------------------

APPLICATION = """
import os
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
import ubatch
import ubatch.metrics

ubatch.metrics.prometheus()
batch = ubatch.UBatch(handler=lambda items: items, name="measured")

def application(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        body = generate_latest(registry)
    else:
        body = str((os.getpid(), batch.ubatch(1))).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.service
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("worker", ["gthread", "gevent"])
def test_gunicorn_with_two_workers(worker, preload, tmp_path):
    """Whichever process is asked, a scrape tells what both have done."""
    for package in ("gunicorn", "gevent"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    files = tmp_path / "files"
    files.mkdir()
    (tmp_path / "application.py").write_text(APPLICATION)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "gunicorn", "--bind", address, "--workers", "2", "--worker-class", worker]
    command += [*["--threads", "4"] * (worker == "gthread"), *["--preload"] * preload, "application"]
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(files)}
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=log, stderr=log)

    def ask(path: str) -> str:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE) as response:
            return str(response.read().decode())

    def items() -> float:
        try:
            samples = parsed(ask("/metrics"))
        except OSError:  # not there yet; or the client has read a file that the other process was just making
            return -1.0
        return samples.get(("ubatch_items_total", frozenset({("batcher", "measured")})), 0.0)

    try:
        eventually(lambda: items() == 0)
        asked, processes = 0, set()
        while len(processes) < 2 or asked < 100:
            assert asked < 5000, "one process answers all"
            processes.add(ask("/").strip("()").split(",")[0])
            asked += 1
        eventually(lambda: items() == asked)
        for _ in range(5):
            samples = parsed(ask("/metrics"))
            assert value(samples, "items_total", batcher="measured") == asked
            assert value(samples, "item_wait_seconds_count", batcher="measured") == asked
            assert value(samples, "batch_size_sum", batcher="measured") == asked
            assert value(samples, "queued_items", batcher="measured") == 0
    finally:
        server.terminate()
        server.wait(PATIENCE)
        log.close()
