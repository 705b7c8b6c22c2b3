"""What is logged: one warning for each kind of trouble and minute, with a count, by the logger "ubatch".

Batchers of one name, as those of a method's instances, share what they warn of: there may be one for each request.

What comes within a minute of a warning is counted, for the next of its kind. If that does not come within two, the
count is told with the next occasion: whatever is reported, of any batcher; a batcher that works, now and then, or is
stopped; and in any case the interpreter's exit. There is no thread and no timer for it.

Guarantees: no handler is installed, nothing is logged while a lock is held, no exception is kept, and no item or result
is in a message (an exception that is logged along says what its maker made it say). A log handler that raises does no
harm, and none at all ends a thread of ours. What interrupts one in another thread, as a signal handler's exception
does, goes on: so whoever reports has put its own things in order before.

`logging` takes longer to import than all of ubatch, so it is imported when there is something to say.
"""

from __future__ import annotations

import atexit
import os

from . import _native
from ._native import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAUSE = 60.0
"""Seconds between two warnings of one kind."""

MOST_KINDS = 64
"""Kinds that are told apart, of each name; there is one more for all further ones of one text."""

MOST_NAMES = 256
"""Names of batchers that are told apart; there is one more for all further ones."""

WARNING, ERROR = 30, 40
"""The levels of `logging`."""

NEVER = float("inf")


class _Others:
    """Stands in messages for what is not told apart."""

    def __repr__(self) -> str:
        return "<others>"


OTHERS: Any = _Others()

known: dict[str, dict[tuple[str, ...], Trouble]] = {}
"""What was warned of lately: by the batchers' name, and by the message and what it names. Guarded by _lock."""

due = NEVER
"""When there may be a count to be told. Guarded by _lock; a look at it needs none."""

_watches_exit = False
_lock = _native.reentrant_lock()  # of all batchers: it is held for a few steps, and a fork has one to renew


def _forked() -> None:
    global _lock
    _lock = _native.reentrant_lock()
    known.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Trouble:
    """One kind of trouble of batchers of one name. Guarded by _lock."""

    __slots__ = ("args", "message", "told", "untold")

    def __init__(self, name: str, message: str, *details: str) -> None:
        self.message = message
        self.args = name, *details
        self.told = -NEVER  # when
        self.untold = 0  # how many there were since

    @property
    def due(self) -> float:
        """When its count is told without one more of its kind: that, if it still comes, has a traceback to show."""
        return self.told + 2 * PAUSE

    def take(self, now: float) -> int:
        """The count, which is as good as told."""
        count, self.untold, self.told = self.untold, 0, now
        return count


def report(name: str, count: int, message: str, *details: str, error: BaseException | None = None) -> None:
    """Warn of it, or count it for the next warning of its kind. Safe to use from any thread.

    Args:
        name: of the batcher; the first argument of the message.
        count: how many there are; the sum of what has not been told is the last argument of the message.
        message: as of `logging`.
        details: its arguments between; each message with other details is another kind.
        error: logged along, with its traceback.
    """
    global due
    now = monotonic()
    told = 0
    with _lock:
        trouble = _trouble(name, message, *details)
        trouble.untold += count
        if now - trouble.told >= PAUSE:
            told = trouble.take(now)
        else:
            due = min(due, trouble.due)
    if told:
        say(WARNING, message, *trouble.args, told, error=error)
    catch_up()


def report_once(name: str, message: str, *details: str, error: BaseException | None = None) -> None:
    """Warn of it if that has not been done yet; there is no count. Else as `report`."""
    with _lock:
        trouble = _trouble(name, message, *details)
        is_new, trouble.told = trouble.told < NEVER, NEVER
    if is_new:
        say(WARNING, message, *trouble.args, error=error)


def _trouble(name: str, *kind: str) -> Trouble:
    if name not in known and len(known) >= MOST_NAMES:
        name = OTHERS
    kinds = known.setdefault(name, {})
    if kind not in kinds and len(kinds) >= MOST_KINDS:
        kind = kind[0], *[OTHERS for _ in kind[1:]]
    return kinds.get(kind) or kinds.setdefault(kind, Trouble(name, *kind))


def catch_up(ends: bool = False) -> None:
    """Tell counts that are due, and forget what is of no consequence any more; else it costs a look at the clock.

    Args:
        ends: whether all that there are are due, as there will be no other occasion.
    """
    global due
    now = monotonic()
    if now < due and not ends:
        return
    late: list[Trouble] = []
    with _lock:
        due = NEVER
        for name, kinds in list(known.items()):
            for kind, trouble in list(kinds.items()):
                if trouble.untold:
                    due = min(due, trouble.due)  # the late ones', too: an interrupt leaves them for the next occasion
                    if ends or trouble.due <= now:
                        late.append(trouble)
                elif now - trouble.told >= PAUSE:
                    kinds.pop(kind, None)
            if not kinds:
                known.pop(name, None)
    for trouble in late:
        with _lock:
            told = trouble.take(now) if trouble.untold else 0
        if told:
            say(WARNING, trouble.message, *trouble.args, told)


def say(level: int, message: str, *args: Any, error: BaseException | None = None) -> None:
    """Log a message, with the traceback of an `error`. Raises what interrupts this thread, if it is none of ours."""
    global _watches_exit
    try:
        import logging

        if not _watches_exit:
            _watches_exit = True
            atexit.register(catch_up, ends=True)  # later than what `logging` does at exit, and so called before it
        logging.getLogger("ubatch").log(level, message, *args, exc_info=error)
    except BaseException as failure:  # of a log handler, user code; or the interpreter is ending: nobody is to be told
        if not isinstance(failure, Exception) and not _native.is_own_thread():
            raise
    finally:
        del error  # its traceback may refer to frames that refer to this one
