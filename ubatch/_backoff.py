"""When something is tried again that failed. Pure: no thread, lock or clock; the time is an argument.

Purpose: a crew asks it about starts of children (`_crew`).

Guarantees:
- After a try that failed none is due for a pause, which is `FIRST_PAUSE` seconds at first, and twice as long each time,
  up to `LONGEST_PAUSE`. One that succeeds ends that.
- There is hope, so that waiting for the next try makes sense, until one has failed; and after that, if one has ever
  succeeded, until `TRIES` failed in a row. Those that failed side by side are one failure: they had one cause.

Assumptions: it is told and asked by one thread at a time.
"""

from __future__ import annotations

FIRST_PAUSE = 0.1
"""Seconds until the next try after one that failed; doubled each time."""

LONGEST_PAUSE = 30.0
"""Seconds that this grows to."""

TRIES = 3
"""So many that fail, one after another, end the hope that is left by one that succeeded."""


class Backoff:
    """Tries that failed, one after another; see the head of the file.

    Attributes:
        failures: how many.
        until: when the next is due, in seconds on the clock of those who tell it; in the past if it is due.
        reason: why the last failed; `None` if there is none.
    """

    __slots__ = ("_counted", "_proven", "failures", "reason", "until")

    def __init__(self) -> None:
        self._proven = False  # whether one has ever succeeded
        self.forget()

    def forget(self) -> None:
        """What failed is no reason any more to put off the next try."""
        self.failures = 0
        self.until = float("-inf")
        self.reason: BaseException | None = None
        self._counted = float("-inf")  # when the last of `failures` was

    @property
    def hopeful(self) -> bool:
        """Whether waiting for the next try makes sense."""
        return not self.failures or (self._proven and self.failures < TRIES)

    def succeeded(self) -> None:
        """A try has succeeded."""
        self._proven = True
        self.forget()

    def failed(self, began: float, now: float, reason: BaseException) -> None:
        """A try has failed.

        Args:
            began: when it began, in seconds; one that began before another failed is one with that.
            now: the time, in seconds.
            reason: why.
        """
        if began >= self._counted:
            self.failures += 1
            self._counted = now
        self.until = now + min(FIRST_PAUSE * 2.0 ** min(self.failures - 1, 30), LONGEST_PAUSE)
        self.reason = reason
