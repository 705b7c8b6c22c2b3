"""When a free worker takes what is queued.

Pure: decisions from numbers, `now` among them; no thread, lock or clock. A policy is asked each time a worker
is free and something is queued. It says "cut now" (`None`) or "hold" (`Hold`: until when, and from how many
queued items on it wants to be asked again before that).
"""

from __future__ import annotations


class Hold:
    """The worker is to wait.

    Args:
        until: monotonic time, in seconds, at which to ask again at the latest.
        wake_at: number of queued items at which to ask again before that.
    """

    __slots__ = ("until", "wake_at")

    def __init__(self, until: float, wake_at: int) -> None:
        self.until = until
        self.wake_at = wake_at


class Window:
    """The fixed window: a batch leaves when it is full or when its oldest item is `timeout` old.

    The window runs from the arrival of the oldest item, not from the moment a worker looks: an item that
    arrived while the worker was busy has used up its time, and what is queued then leaves at once.

    Args:
        timeout: the longest time, in seconds, that an item is held for companions while a worker is free.
            Zero is greedy: whatever is queued when a worker is free leaves at once.
    """

    __slots__ = ("timeout",)

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def decide(self, now: float, queued: int, oldest: float, max_size: int) -> Hold | None:
        """Say what a free worker does with `queued` >= 1 items, the oldest of which arrived at `oldest`.

        Args:
            now: monotonic time, in seconds.
            queued: items that are there.
            oldest: arrival of the oldest of them, on the clock of `now`.
            max_size: the largest batch, in items.

        Returns:
            `None` to cut `min(queued, max_size)` items now, or how long to hold.
        """
        if queued >= max_size or now - oldest >= self.timeout:
            return None
        return Hold(min(oldest, now) + self.timeout, max_size)
