"""Stress: every face of one batcher at once, with cancels, errors, stops, starts and forks, in a hurry.

Threads, tasks and forks are `benchmarks/soak`, which runs for as long as one likes; here it runs for a moment.
Greenlets are here. `UBATCH_STRESS_SECONDS` says how long each test takes, `UBATCH_SEED` repeats a run.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from ubatch import HandlerFailed, Stopped, WorkerDied, aio

ROOT = Path(__file__).resolve().parents[1]
SECONDS = float(os.environ.get("UBATCH_STRESS_SECONDS", "3"))

pytestmark = pytest.mark.stress


def soak(run_python, out, options, before="", returncode=0):
    """The result of a soak in an interpreter of its own, where some code runs before."""
    arguments = ["soak", "--seconds", SECONDS, "--interval", 1, "--out", out, *options]
    run_python(
        f"""
        import runpy, sys
        sys.path.append({str(ROOT)!r})
        sys.argv = {[str(argument) for argument in arguments]!r}
        {before}
        runpy.run_module("benchmarks.soak", run_name="__main__")
        """,
        timeout=SECONDS + 100,
        returncode=returncode,
    )
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "options",
    [[], ["--no-forks", "--switch", "0.005"], ["--options"], ["--aio"], ["--aio", "--plain"]],
    ids=["forks, in a hurry", "at ease", "with options, in a hurry", "event loops", "event loops, a plain function"],
)
def test_every_item_resolves_once(options, seed, run_python, tmp_path):
    """Whatever is mixed, each accepted item resolves exactly once, and every counter returns to zero."""
    result = soak(run_python, tmp_path / "soak.json", ["--seed", seed, *options])
    assert result["violations"] == []
    assert result["seed"] == seed
    assert result["attempts"] == result["resolved"] > 1000
    assert result["stats"]["queued"] == result["stats"]["running"] == 0
    assert result["stats"]["items"] > 500
    assert len(result["memory_at_rest"]) == 4


@pytest.mark.parametrize("options", [["--options"], ["--aio"]], ids=["threads", "event loops"])
def test_a_soak_fails_if_something_is_kept_of_each_item(options, seed, run_python, tmp_path):
    """Status 1, and it says how much memory grew."""
    leak = "from benchmarks.soak import ledger, memory; memory.LEAST = 0; kept = []; see = ledger.Ledger.see; "
    leak += "ledger.Ledger.see = lambda self, items: (see(self, items), kept.extend(object() for _ in items * 10))"
    result = soak(run_python, tmp_path / "soak.json", ["--seed", seed, *options], before=leak, returncode=1)
    assert result["violations"][0].startswith("blocks grew by ")


GREENLETS = """
if PATCHED:
    from gevent import monkey; monkey.patch_all()
import os, random, sys, time
import gevent
from gevent import monkey
import ubatch._turns
from ubatch import Stopped, UBatch

sys.setswitchinterval(1e-5)
native_sleep = monkey.get_original("time", "sleep")
start_native_thread = monkey.get_original("_thread", "start_new_thread")
gevent.sleep(0)
end = time.monotonic() + SECONDS
errors, done, ended = [], [], []
handler_random = random.Random(SEED)

def handler(items):
    if handler_random.random() < 0.05:
        (time.sleep if PATCHED and handler_random.random() < 0.5 else native_sleep)(0.001)
    if any(item % 997 == 0 for item in items):
        raise KeyError("batch")
    return [KeyError(item) if item % 101 == 0 else 2 * item for item in items]

batch = UBatch(16, handler=handler)

def call(chance, item):
    try:
        what = chance.random()
        if what < 0.5:
            assert batch.ubatch(item) == 2 * item
        elif what < 0.7:
            assert batch.map([item, item + 1]) == [2 * item, 2 * item + 2]
        elif what < 0.9:
            future = batch.submit(item)
            if chance.random() < 0.2 and future.cancel():
                return
            assert future.result() == 2 * item
        else:
            with gevent.Timeout(chance.random() * 0.003, False):
                assert batch.ubatch(item) == 2 * item
    except (KeyError, Stopped):
        pass
    except gevent.GreenletExit:
        raise
    except BaseException as error:
        errors.append(error)
    finally:
        done.append(1)

def hub(number):
    chance = random.Random(SEED + number)
    while time.monotonic() < end and not errors:
        greenlets = [gevent.spawn(call, chance, chance.randrange(10000)) for _ in range(chance.randrange(1, 60))]
        if chance.random() < 0.3:
            gevent.sleep(chance.random() * 0.002)
            gevent.killall(chance.sample(greenlets, len(greenlets) // 3))
        gevent.joinall(greenlets, timeout=30)
        if not all(greenlet.dead for greenlet in greenlets):
            errors.append("greenlets that never end")
    if number:
        gevent.get_hub().destroy(destroy_loop=True)
    ended.append(number)

def stops():
    chance = random.Random(SEED)
    while time.monotonic() < end:
        gevent.sleep(chance.random() * 0.01)
        batch.stop(drain=chance.random() < 0.7, timeout=chance.choice((None, 0, 0.001)))
        batch.start()
        batch.max_size = chance.randrange(1, 32)
        batch.timeout = chance.choice((None, 0, 0.001))
        batch.workers = chance.choice((1, 1, 2, 3))
        ubatch._turns.IDLE_EXIT = chance.choice((0.0, 0.001, 10.0))

before = len(os.listdir("/proc/self/fd"))
for number in (1, 2):
    start_native_thread(hub, (number,))
stopping = gevent.spawn(stops)
hub(0)
stopping.get()
late = time.monotonic() + 30
while len(ended) < 3 and time.monotonic() < late:
    gevent.sleep(0.01)
assert sorted(ended) == [0, 1, 2], ended
assert not errors, errors
batch.start()
assert batch.ubatch(1) == 2
assert batch.stop()
assert batch.stats.queued == batch.stats.running == 0
assert len(done) > 200, len(done)
while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < late:
    gevent.sleep(0.01)
assert len(os.listdir("/proc/self/fd")) <= before, (before, os.listdir("/proc/self/fd"))
"""


@pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
def test_greenlets(run_python, seed, patched):
    """Greenlets of several hubs call, wait, are killed and timed out, while the batcher stops and starts."""
    pytest.importorskip("gevent")
    run_python(
        f"SECONDS, SEED, PATCHED = {SECONDS}, {seed}, {patched}\n" + GREENLETS,
        timeout=SECONDS + 100,
        stderr=None,  # what killed greenlets leave there
    )


@pytest.mark.usefixtures("_uvloop_is_open")
@pytest.mark.parametrize("plain", [False, True], ids=["coroutines", "plain functions"])
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_event_loops(seed, kind, plain, caplog, request):
    """`ubatch.aio`: all faces, while tasks are cancelled and the batcher stops, starts and changes."""
    new_loop = request.getfixturevalue("uvloop").new_event_loop if kind == "uvloop" else asyncio.new_event_loop
    end = time.monotonic() + SECONDS
    runs = 0
    while time.monotonic() < end:
        loop = new_loop()
        try:
            loop.run_until_complete(on_a_loop(random.Random(seed + runs), plain))
        except BaseException:
            print(f"run {runs}")
            raise
        finally:
            loop.close()
        runs += 1
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.WARNING] == []


async def on_a_loop(rng: random.Random, plain: bool) -> None:
    """Some tasks, some trouble; then everything has resolved, and the batcher works and is at rest."""
    seen: Counter[object] = Counter()

    def function(items):
        seen.update(items)
        return outcome(items)

    def outcome(items):
        if rng.random() < 0.1:
            raise rng.choice([ValueError("all"), asyncio.CancelledError("own"), SystemExit(3)])
        return [ValueError("one") if rng.random() < 0.03 else ("result", item) for item in items]

    async def coroutine(items):
        seen.update(items)
        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003]))
        return outcome(items)

    batch = aio.UBatch(
        rng.choice([1, 3, 8]),
        rng.choice([None, 0, 0.005]),
        handler=function if plain else coroutine,
        workers=rng.choice([1, 2, 3]),
    )
    futures: list[asyncio.Future[object]] = []

    async def caller(number):
        await asyncio.sleep(rng.random() * 0.03)
        face = rng.randrange(5)
        if face == 0:
            assert await batch.ubatch(number) == ("result", number)
        elif face == 1:
            items = [(number, place) for place in range(rng.randrange(7))]
            assert await batch.map(items) == [("result", item) for item in items]
        elif face == 2:
            await asyncio.wait_for(batch.ubatch(number), rng.random() * 0.01)
        elif face == 3:
            futures.append(future := batch.submit(number))
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.003)
                future.cancel()
        else:
            results = batch.stream([(number, place) for place in range(9)], ahead=rng.choice([None, 1, 3]))
            try:
                for place in range(rng.randrange(9)):
                    assert await anext(results) == ("result", (number, place))
            finally:
                await results.aclose()

    async def trouble():
        for _ in range(rng.randrange(5, 25)):
            await asyncio.sleep(rng.random() * 0.004)
            what = rng.random()
            if what < 0.35:
                share = 1.0 if what < 0.05 else 0.2
                for task in asyncio.all_tasks() - {me, troubled}:
                    if rng.random() < share:
                        task.cancel()
            elif what < 0.5:
                await batch.stop(drain=rng.random() < 0.5, timeout=rng.choice([0, 0.001, 0.01, None]))
                batch.start()
            elif what < 0.6:
                batch.timeout, batch.max_size = rng.choice([None, 0, 0.005]), rng.choice([1, 3, 8])

    me = asyncio.current_task()
    callers = [asyncio.ensure_future(caller(number)) for number in range(rng.choice([5, 30, 60]))]
    troubled = asyncio.ensure_future(trouble())
    _, pending = await asyncio.wait([*callers, troubled], timeout=20)
    assert not pending
    troubled.result()
    if futures:
        _, pending = await asyncio.wait(futures, timeout=20)
        assert not pending
    allowed = (ValueError, HandlerFailed, Stopped, WorkerDied, asyncio.TimeoutError)
    for future in [*callers, *futures]:
        error = None if future.cancelled() else future.exception()
        assert error is None or isinstance(error, allowed), error
    assert set(seen.values()) <= {1}
    await asyncio.gather(*(batch.ubatch(("last", number)) for number in range(20)), return_exceptions=True)
    assert await asyncio.wait_for(batch.stop(), 20)
    stats = batch.stats
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.items == sum(seen.values()) or (plain and stats.items > sum(seen.values()))  # cancelled on the way
