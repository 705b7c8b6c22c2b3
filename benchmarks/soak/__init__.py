"""A soak: every face of one batcher at once, with cancels, errors, stops, starts and forks mixed in.

    python -m benchmarks.soak --seconds 600
    python -m benchmarks.soak --options --items 1000000
    python -m benchmarks.soak --aio --items 1000000
    python -m benchmarks.soak --kills

Threads, asyncio tasks and forked children call one batcher at random, while others stop it, start it and change its
options. With `--options` items have keys, weights, priorities and deadlines, and the queue is bounded. With `--aio`
they do, too, and the batcher is one of `ubatch.aio`, on several event loops that come and go. A ledger follows every
item. What must hold: each accepted item resolves exactly once, with its own result or an error that it may get; the
handler sees no item twice, and none whose caller was told that it would not; nobody hangs; throughput does not drift.
After each quarter everything comes to rest: then no thread is left, all counters are at zero, and memory is looked at,
which must not grow from half-time on (see `memory`). Violations end it with status 1. The result, with the throughput
of each interval, goes to `benchmarks/results/soak.json`, `soak-options.json` or `soak-aio.json`.

`--kills` is another soak, of a flow with steps in child processes that are killed (see `kills`): `soak-kills.json`.
"""
