"""What is logged: one warning for each kind of trouble and minute, with a count, by the logger "ubatch".

Batchers of one name, as those of a method's instances, share what they warn of: there may be one for each request.

Guarantees: no handler is installed, nothing is logged while a lock is held, and no item or result is in a message (an
exception that is logged along says what its maker made it say). A log handler that raises does no harm.

`logging` takes longer to import than all of ubatch, so it is imported when there is something to say.
"""

from __future__ import annotations

import os

from . import _native
from ._native import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAUSE = 60.0
"""Seconds between two warnings of one kind."""

ONCE = float("inf")
"""The pause after what is said once."""

MOST_KINDS = 64
"""Kinds that are told apart; all further ones count as one."""

MOST_NAMES = 256
"""Names of batchers that are remembered."""

known: dict[str, Troubles] = {}
"""By name, the latest last. Guarded by _lock."""

_lock = _native.reentrant_lock()  # of all batchers: it is held for a few steps, and a fork has one to renew


def _forked() -> None:
    global _lock
    _lock = _native.reentrant_lock()
    known.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def troubles_of(name: str) -> Troubles:
    """What batchers of that name have warned of. Safe to use from any thread."""
    with _lock:
        troubles = known[name] = known.pop(name) if name in known else Troubles()
        while len(known) > MOST_NAMES:
            del known[next(iter(known))]
        return troubles


class Troubles:
    """What somebody has warned of. Safe to use from any thread."""

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: dict[object, tuple[float, int]] = {}  # told when, how many since; guarded by _lock

    def report(
        self,
        kind: object,
        count: int,
        message: str,
        *args: Any,
        error: BaseException | None = None,
        pause: float = PAUSE,
    ) -> None:
        """Warn of it, or count it for the next warning of its kind.

        Args:
            kind: what is one warning in each `pause`.
            count: how many there are; the sum of what has not been told is the last argument of the message.
            message, args: as of `logging`.
            error: logged along, with its traceback.
            pause: seconds from one warning to the next.
        """
        now = monotonic()
        with _lock:
            if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
                kind = "others"
            told, untold = self._kinds.get(kind, (-ONCE, 0))
            untold += count
            silent = now - told < pause
            self._kinds[kind] = (told, untold) if silent else (now, 0)
        if silent:
            return
        try:
            import logging

            logging.getLogger("ubatch").warning(message, *args, untold, exc_info=error)
        except BaseException:  # of a log handler, user code; or the interpreter is ending. There is nobody to tell
            pass
        finally:
            del error  # its traceback may refer to frames that refer to this one
