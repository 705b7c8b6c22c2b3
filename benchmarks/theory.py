"""What can be known without simulating: closed forms, and the exact optimum for one worker."""

from __future__ import annotations

from math import exp

import numpy as np

from .virtual import Setting


def best_throughput(setting: Setting, callers: int, spread: float = 0.0) -> float:
    """X*: items per second if each batch waits until all `callers` are back, which takes `spread` seconds.

    With more callers than a batch takes, the others are queued meanwhile, and nothing is waited for.
    """
    size = min(callers, setting.max_size)
    return size / (setting.duration(size) + (spread if callers <= setting.max_size else 0.0))


def greedy_throughput(setting: Setting, callers: int) -> float:
    """1, K - 1, 1, K - 1 ..."""
    if callers <= 1:
        return best_throughput(setting, callers)
    return callers / (2 * setting.a + setting.c * callers)


def greedy_latency(setting: Setting, rate: float) -> tuple[float, float]:
    """Bounds of greedy's mean latency under Poisson arrivals, one worker, no largest batch."""
    a, c = setting.a, setting.c
    through = 1 - rate * c

    def latency(mean_size: float) -> float:
        m = (1 + 2 * rate**2 * a * c + rate**2 * a**2 / mean_size) / (1 - rate**2 * c**2)
        return rate * (c**2 * m + 2 * a * c + a**2 / mean_size) / 2 + c * m + a

    low = max(1.0, rate * a / through)
    high = (rate * a + exp(-rate * (a + c))) / through
    return latency(high), latency(low)


def optimal_latency(setting: Setting, rate: float, noise: float = 0.1) -> tuple[float, float, list[bool]]:
    """The least mean latency that any rule reaches under Poisson arrivals with one worker; greedy's; who waits.

    A semi-Markov decision process. The state is the number of queued items as the worker is free; it may take
    `min(q, B)` or wait for the next arrival. Costs are the items in the system, integrated over time; by Little's
    law their mean is the rate times the mean latency. Solved by policy iteration (value iteration whose every
    step is solved exactly), the durations by three points of Gauss-Hermite quadrature.
    """
    largest = setting.max_size
    states = 6 * largest + int(4 * rate * setting.duration(largest))
    points, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    serve = np.zeros((states, states))
    served_for = np.ones(states)
    served_cost = np.zeros(states)
    for queued in range(1, states):
        size = min(queued, largest)
        served_for[queued] = setting.duration(size)
        for point, weight in zip(points, weights, strict=True):
            duration = setting.duration(size) * (1 + noise * point)
            served_cost[queued] += weight * (queued * duration + rate * duration**2 / 2)
            left = queued - size
            room = states - left
            chances = _poisson(rate * duration, room)
            serve[queued, left:] += weight * chances
            serve[queued, -1] += weight * max(0.0, 1.0 - chances.sum())
    wait = np.zeros((states, states))
    wait[np.arange(states - 1), np.arange(1, states)] = 1.0
    waited_for = np.full(states, 1 / rate)
    waited_cost = np.arange(states) / rate

    waits = np.zeros(states, dtype=bool)
    waits[0] = True
    gains: list[float] = []
    for _ in range(30):
        moves = np.where(waits[:, None], wait, serve)
        times = np.where(waits, waited_for, served_for)
        costs = np.where(waits, waited_cost, served_cost)
        # h = cost - g·time + P·h with h[0] = 0: the unknown g takes the place of h[0]
        system = np.eye(states) - moves
        system[:, 0] = times
        solution = np.linalg.solve(system, costs)
        gain, values = solution[0], solution.copy()
        values[0] = 0.0
        gains.append(gain)
        serving = served_cost - gain * served_for + serve @ values
        waiting = waited_cost - gain * waited_for + wait @ values
        better = waiting < serving - 1e-12
        better[0], better[largest:] = True, False
        if (better == waits).all():
            break
        waits = better
    return gains[-1] / rate, gains[0] / rate, waits[: largest + 1].tolist()


def _poisson(mean: float, size: int) -> np.ndarray:
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, size)))))
    return np.exp(np.arange(size) * np.log(mean) - mean - logs)
