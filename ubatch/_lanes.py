"""Which items leave together where that is not simply first in, first out: priorities, keys, weights, deadlines.

Pure: no thread, lock or clock. `Lanes` takes the place of `Fifo` at a batcher that uses any of it. Submitters append
to the same queue as there; what is in it is sorted by whoever decides, into one lane for each key.

Within a lane items leave in the order of `arrived + aging·priority`: each waiting item gains a level in `aging`
seconds, which is the same as saying that one of priority p gives way only to items of a lower priority q < p that
arrive less than `aging·(p - q)` seconds after it. Between lanes the same holds for the items at their heads, but
that a head's waiting counts from the time when its lane was served last: so of lanes that always have something each
is served in its turn. A lane without items does not exist.

Where a batch is bounded by weight, items leave in that order until one does not fit. Where it is bounded by padded
weight, the next item leaves with others of like weight, chosen for the least waste per item;
as the next item always leaves, one with n items before it leaves with the (n + 1)th batch of its lane at the latest.

Who may do what: any thread may append to `queue`, and call `depart` and `next`, at any time. `hold`, `take` and `purge`
are for the worker; these, `withdraw` and `empty` for one thread at a time. No other than the worker sorts, so who has
appended and then looks at the length of `queue` sees his item there, or knows the worker awake. `withdraw` and `empty`
do nothing where they come upon one of the others further up on the same stack, in a `__del__` or a signal handler.
A fork finds each item in `next()`, or in the list that `take` or `empty` fills, or in both.

Assumptions as in `_schedule`; also that `heappush` and `heappop` are single steps, and that comparing keys is quick
and calls nothing of the batcher's. A key that cannot be compared fails its item alone.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from itertools import accumulate, repeat, starmap
from math import ceil

from ._admission import Admission
from ._padding import alike
from ._schedule import Fifo, copy_of
from ._terms import INFINITE, Rules, Terms, terms_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from typing import Any

    from ._cost import Cost
    from ._schedule import Hold, Item, Policy

HASTE = 1.5
"""A hold ends before an item is due by this many times the expected duration of the batch."""

LEAST = 5e-3
"""And by this many seconds at least, or a quarter of the time allowed: a worker takes time to wake up."""

LOOK_AHEAD = 4
"""Batches' worth of items that are looked at: for those of like weight, and for those that do not count."""

SLACK = 64
"""Entries of items that are gone that are kept beside as many of those that are there."""


class Lane:
    """The items of one key that wait, at least one, in a heap: what they are ordered by, a number, the item."""

    __slots__ = ("heap", "heaviest", "key", "served", "turn", "weight")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.heap: list[tuple[tuple[float, float], int, Item]] = []
        self.weight = 0.0
        self.heaviest = 0.0
        self.served = -INFINITE  # when a batch was last taken from it
        self.turn: tuple[tuple[float, float], int] = ((0.0, 0.0), 0)  # what lanes are ordered by

    def room(self, most: int, rules: Rules) -> int:
        """How many more items may come before it is worth another look; 0 if there is a full batch."""
        count = len(self.heap)
        if rules.max_weight == INFINITE or not count:
            return max(0, most - count)
        load = self.heaviest * count if rules.padded else self.weight
        if count >= most or load >= rules.max_weight:
            return 0
        expected = (rules.max_weight - load) * count / load if load else INFINITE  # of the weight of those here
        return max(1, min(most - count, ceil(min(expected, most) / 2)))


class Lanes:
    """A lane for each key; see the head of the file."""

    __slots__ = (
        "_ages",
        "_ahead",
        "_before",
        "_dues",
        "_fewest",
        "_full",
        "_is_busy",
        "_lanes",
        "_latest",
        "_most",
        "_moving",
        "_number",
        "_turns",
        "admission",
        "append",
        "choice",
        "expired",
        "failed",
        "gone",
        "queue",
        "rules",
        "sorted",
        "tight",
    )

    special = True
    """Whether there is more to it than `Fifo`: `take` needs the time, and one caller at a time."""

    def __init__(self, before: Fifo, rules: Rules) -> None:
        self._before = before  # whoever came across it may still append to its queue, or set its flag
        self.queue = before.queue
        self.append = before.append
        self.rules = rules
        self.admission = Admission(self.queue, rules)
        self.sorted = 0
        """Items that are not in `queue` any more, but in lanes."""
        self.expired: list[Any] = []
        """Items that were found expired, for the driver to tell them."""
        self.failed: list[tuple[Any, Exception]] = []
        """Items that cannot be sorted, and why, for the driver to tell them."""
        self.gone = 0
        """Items that were thrown away because their callers had left, for the driver to count."""
        self.tight = INFINITE
        """An item that is due before this is to be looked at, though the worker is to be left alone otherwise."""
        self.choice: Lane | None = None  # the lane that the latest decision was about
        self._is_busy = False  # perhaps further up on this stack
        self._lanes: dict[Hashable, Lane] = {}
        self._number = 0
        self._latest = -INFINITE
        self._ahead: list[Item] = []  # looked at for a batch
        self._moving: list[Item] = []  # on their way from the queue to their lanes, the last one first
        # what is full, of batches of `_most` items; and a lower bound of what the fullest of the others has room for
        self._most = 0
        self._full: dict[Lane, None] = {}
        self._fewest = 0
        # with entries of items and turns that are gone; `_tidy` sees to it that they are not too many
        self._turns: list[tuple[tuple[tuple[float, float], int], int, Lane]] = []  # a heap
        self._dues: list[tuple[float, int, Terms]] = []  # a heap
        self._ages: deque[Terms] = deque()  # in order of arrival

    def __len__(self) -> int:
        return len(self.queue) + len(self._moving) + self.sorted

    @property
    def stale(self) -> bool:
        """As of `Fifo`."""
        return self._before.stale

    @stale.setter
    def stale(self, stale: bool) -> None:
        self._before.stale = stale

    @property
    def lobby(self) -> deque[Any]:
        """Items that wait for there to be room in the queue."""
        return self.admission.lobby

    @property
    def tightest(self) -> float:
        """The first moment at which a sorted item is due; infinite if none is."""
        dues = self._dues
        while dues and dues[0][2].lane is None:
            heappop(dues)
        return dues[0][0] if dues else INFINITE

    # -- deciding -----------------------------------------------------------------------------------------

    def hold(self, policy: Policy, now: float, most: int) -> Hold | None:
        """As `Fifo.hold`. The lane that is next is asked about first, then any that is full, then the oldest item's."""
        self._is_busy = True
        try:
            self._sort(now)
            if not self._lanes:
                raise IndexError("nothing is queued")
            hold, self.choice = self._decide(policy, now, most)
            self.tight = INFINITE if hold is None else self.tightest
            return hold
        finally:
            self._is_busy = False

    def _decide(self, policy: Policy, now: float, most: int) -> tuple[Hold | None, Lane]:
        """What the policy says, and of which lane."""
        rules, queued, newest = self.rules, self.sorted, self._latest
        fewest = self._look_for_room(most)
        lane, eldest = self._next(), self._eldest()
        oldest = eldest.since if eldest.lane is lane else terms_of(lane.heap[0][2]).since
        hold = policy.decide(now, queued, oldest, queued + lane.room(most, rules), newest)
        if hold is None:
            return None, lane
        if self._full:
            policy.reason = "full"
            return None, min(self._full, key=lambda other: other.turn)
        if rules.max_queue is not None and queued >= rules.max_queue:  # nobody else could come
            policy.reason = "full"
            return None, lane
        if eldest.lane is not lane:
            other = policy.decide(now, queued, eldest.since, queued + eldest.lane.room(most, rules), newest)
            if other is None:
                return None, eldest.lane
            if other.until < hold.until:
                hold, lane = other, eldest.lane
        if self.tightest < INFINITE:
            due, _, terms = self._dues[0]
            lead = self._lead(policy.cost, most)
            latest = due - (terms.deadline / 2 if lead is None else head_start(lead, terms.deadline))
            if latest < hold.until:
                policy.reason = "deadline"
                hold.until, lane = latest, terms.lane
                if now >= latest:
                    return None, lane
        hold.wake_at = max(1, min(hold.wake_at - queued, fewest))
        return hold, lane

    def _look_for_room(self, most: int) -> int:
        """Find out which lanes are full; how many more items may come before another may be."""
        if most != self._most or len(self._lanes) <= SLACK:
            self._most = most
            rooms = {lane: lane.room(most, self.rules) for lane in self._lanes.values()}
            self._full = {lane: None for lane, room in rooms.items() if not room}
            self._fewest = min((room for room in rooms.values() if room), default=most)
        return self._fewest

    def take(self, most: int, into: list[Item], now: float, cost: Cost | None = None) -> None:
        """Move the next items, all of one key, into the empty list `into`, unclaimed. See `expired` and `failed`.

        Args:
            most: how many at most.
            into: where to.
            now: monotonic time, in seconds.
            cost: what a batch is expected to cost. Items that would be late go only where there is room: under
                overload the others can be in time.
        """
        self._is_busy = True
        try:
            self._sort(now)
            lane, self.choice = self.choice, None
            if lane is None or not lane.heap:
                if not self._lanes:
                    return
                lane = self._next()
            self._clear(lane, now)
            soon = now + (self._lead(cost, most) or 0.0)
            if self.rules.padded or self.tightest <= soon:
                if lane.heap:
                    self._take_best(lane, most, into, now, soon)
            else:
                limit, weight = self.rules.max_weight, 0.0
                while lane.heap and len(into) < most:
                    item = lane.heap[0][2]
                    weight += terms_of(item).weight
                    if into and weight > limit:
                        break
                    into.append(item)
                    self._pop(lane)
                    self._clear(lane, now)
            self._settle(lane, now)
            for item in into:
                self.admission.leave(terms_of(item))
        finally:
            self._is_busy = False

    def _take_best(self, lane: Lane, most: int, into: list[Item], now: float, soon: float) -> None:
        """The next item that need not be late, and those of the ones behind it that go with it."""
        heap, ahead, limit = lane.heap, self._ahead, self.rules.max_weight
        entries: list[tuple[tuple[float, float], int, Item]] = []
        late: list[tuple[tuple[float, float], int, Item]] = []
        wanted = LOOK_AHEAD * most if self.rules.padded else most
        while heap and len(entries) < wanted:
            ahead.append(heap[0][2])  # for a fork to find it
            (late if terms_of(heap[0][2]).due <= soon else entries).append(heap[0])
            self._pop(lane)
            self._clear(lane, now)
        entries += late
        weights = [terms_of(item).weight for _, _, item in entries]
        if self.rules.padded:
            chosen = alike(weights, most, limit)
        else:
            fitting = sum(weight <= limit for weight in accumulate(weights[:most]))
            chosen = [*range(max(1, fitting))]
        into.extend(entries[index][2] for index in chosen)
        for index in sorted(set(range(len(entries))).difference(chosen)):
            self._push(lane, *entries[index])
        ahead.clear()

    def _lead(self, cost: Cost | None, most: int) -> float | None:
        """Seconds before a deadline at which the next batch should leave; `None` while the cost is unknown."""
        return HASTE * cost.predict(min(self.sorted, most)) if cost is not None and cost.batches else None

    def _clear(self, lane: Lane, now: float) -> None:
        """Throw away what is at the head of a lane and does not count any more."""
        while lane.heap:
            item = lane.heap[0][2]
            if not self._gone(item, now):
                break
            self._pop(lane)

    def _gone(self, item: Item, now: float) -> bool:
        """Whether an item does not count any more; it is accounted for then."""
        if terms_of(item).expires <= now:
            self.expired.append(item)
        elif item.left:
            self.gone += 1
        else:
            return False
        self.admission.leave(terms_of(item))
        return True

    def purge(self, most: int, now: float) -> None:
        """Throw away all that do not count any more; if the queue is long, none: `take` passes over them."""
        self._is_busy = True
        try:
            self._sort(now)
            if self.sorted > LOOK_AHEAD * most:
                return
            self.stale = False  # before the look: whoever leaves from here on sets it again
            for lane in list(self._lanes.values()):
                self._remove(lane, {number for _, number, item in lane.heap if self._gone(item, now)})
        finally:
            self._is_busy = False

    # -- what may be called beside ------------------------------------------------------------------------

    def depart(self, item: Item) -> None:
        """As `Fifo.depart`."""
        self.stale = True
        self.admission.depart(item)

    def empty(self, into: list[Item]) -> None:
        """As `Fifo.empty`."""
        if self._is_busy:
            return
        into.extend(starmap(self.queue.popleft, repeat((), len(self.queue))))
        for items in (self._moving, self._ahead):
            into.extend(items)
            items.clear()
        into.extend(item for lane in self._lanes.values() for _, _, item in lane.heap)
        for item in into:
            terms = terms_of(item)
            terms.lane = None
            self.admission.leave(terms)
        self._lanes.clear()
        self.sorted = 0
        self._forget()

    def next(self, most: int) -> list[Item]:
        """All items, some of them perhaps twice."""
        return [*self.admission.waiting(), *self.queued(), *self._ahead, *self.expired]

    def queued(self) -> list[Item]:
        """All items in the queue; while it is sorted, some of them perhaps twice."""
        items = [item for lane in list(self._lanes.values()) for _, _, item in list(lane.heap)]
        return [*copy_of(self.queue), *self._moving, *items]

    def withdraw(self, item: Item) -> bool:
        """As `Fifo.withdraw`; also from the lobby."""
        terms = terms_of(item)
        for queue in (self.queue, self.lobby):
            try:
                queue.remove(item)
            except ValueError:
                continue
            self.admission.leave(terms)
            return True
        lane = terms.lane
        if lane is None or self._is_busy:
            return False
        self._remove(lane, {number for _, number, other in lane.heap if other is item})
        self.admission.leave(terms)
        return True

    # -- sorting ------------------------------------------------------------------------------------------

    def _sort(self, now: float) -> None:
        """Move what was appended into the lanes."""
        queue, moving = self.queue, self._moving
        while queue or moving:
            if not moving:
                try:
                    moving.extend(starmap(queue.popleft, repeat((), len(queue))))
                except IndexError:  # somebody else took the rest
                    pass
                moving.reverse()
                continue
            try:
                self._place(moving[-1], now)
            except Exception as error:  # of the key's own
                self.admission.leave(terms_of(moving[-1]))
                self.failed.append((moving[-1], error))
            moving.pop()

    def _place(self, item: Item, now: float) -> None:
        terms = terms_of(item)
        if terms.lane is not None:
            return
        self._latest = terms.since = min(max(self._latest, item.arrived), now)
        lane = self._lanes.get(terms.key)
        if lane is None:
            lane = self._lanes[terms.key] = Lane(terms.key)
        self._number = number = self._number + 1
        self._ages.append(terms)
        if terms.expires < INFINITE:
            heappush(self._dues, (terms.due, number, terms))
        self._push(lane, self.rules.rank(terms.priority, terms.since), number, item)
        if lane.heap[0][1] == number:
            self._turn(lane)
        self._tidy()

    def _push(self, lane: Lane, rank: tuple[float, float], number: int, item: Item) -> None:
        terms = terms_of(item)
        heappush(lane.heap, (rank, number, item))
        terms.lane = lane
        lane.weight += terms.weight
        lane.heaviest = max(lane.heaviest, terms.weight)
        self.sorted += 1
        if self._most:
            room = lane.room(self._most, self.rules)
            if not room:
                self._full[lane] = None
            elif room < self._fewest:
                self._fewest = room

    def _pop(self, lane: Lane) -> None:
        """Its first item is gone, or is elsewhere already."""
        terms = terms_of(lane.heap[0][2])
        heappop(lane.heap)
        terms.lane = None
        lane.weight -= terms.weight
        self.sorted -= 1

    def _remove(self, lane: Lane, numbers: set[int]) -> None:
        if not numbers:
            return
        for _, number, item in lane.heap:
            if number in numbers:
                terms = terms_of(item)
                terms.lane = None
                lane.weight -= terms.weight
                self.sorted -= 1
        lane.heap[:] = [entry for entry in lane.heap if entry[1] not in numbers]
        heapify(lane.heap)
        self._settle(lane, lane.served)

    def _settle(self, lane: Lane, served: float) -> None:
        """After some of its items have gone."""
        lane.served = served
        if not lane.heap:
            self._lanes.pop(lane.key, None)
        else:
            if self.rules.padded and len(lane.heap) <= LOOK_AHEAD * SLACK:  # else it is full in any case
                lane.heaviest = max(terms_of(item).weight for _, _, item in lane.heap)
            self._turn(lane)
        if lane in self._full and (not lane.heap or lane.room(self._most, self.rules)):
            del self._full[lane]
        if self.sorted:
            self._tidy()
        else:
            self._forget()

    def _forget(self) -> None:
        """Nothing waits: keep nothing of what was."""
        self._turns.clear()
        self._dues.clear()
        self._ages.clear()
        self._full.clear()
        self._fewest = self._most
        self.choice = None

    def _turn(self, lane: Lane) -> None:
        """Its first item is another now, or it was served."""
        _, number, item = lane.heap[0]
        terms = terms_of(item)
        lane.turn = self.rules.rank(terms.priority, max(terms.since, lane.served)), number
        self._number += 1
        heappush(self._turns, (lane.turn, self._number, lane))

    def _next(self) -> Lane:
        """The lane whose turn it is."""
        if len(self._lanes) == 1:
            return next(iter(self._lanes.values()))
        turns = self._turns
        while True:
            turn, _, lane = turns[0]
            if lane.heap and lane.turn == turn:
                return lane
            heappop(turns)

    def _eldest(self) -> Terms:
        """Those of the item that came first."""
        while self._ages[0].lane is None:
            self._ages.popleft()
        return self._ages[0]

    def _tidy(self) -> None:
        """Forget what is gone, once it is more than what is there."""
        if len(self._ages) > 2 * self.sorted + SLACK:
            self._ages = deque(terms for terms in self._ages if terms.lane is not None)
        if len(self._dues) > 2 * self.sorted + SLACK:
            self._dues = [entry for entry in self._dues if entry[2].lane is not None]
            heapify(self._dues)
        if len(self._turns) > 2 * len(self._lanes) + SLACK:
            self._turns = [(lane.turn, number, lane) for number, lane in enumerate(self._lanes.values())]
            heapify(self._turns)

    def _check(self) -> None:
        lanes = self._lanes
        assert self.sorted == sum(len(lane.heap) for lane in lanes.values())
        for key, lane in lanes.items():
            terms = [terms_of(item) for _, _, item in lane.heap]
            assert lane.heap, f"an empty lane: {key!r}"
            assert lane.heap[0] == min(lane.heap)
            assert all(one.key == key == lane.key and one.lane is lane for one in terms)
            assert abs(lane.weight - sum(one.weight for one in terms)) <= 1e-6 * (1 + lane.weight)
            assert any(turn == lane.turn and other is lane for turn, _, other in self._turns)
            head = terms[[number for _, number, _ in lane.heap].index(lane.turn[1])]
            assert lane.turn[0] == self.rules.rank(head.priority, max(head.since, lane.served))
        assert len(self._ages) <= 2 * self.sorted + SLACK
        assert len(self._dues) <= 2 * self.sorted + SLACK
        assert not self._moving
        assert not self._ahead
        if self._most:
            full = {lane for lane in lanes.values() if not lane.room(self._most, self.rules)}
            assert full == set(self._full)
        self.admission._check()
        assert self.admission._inside == sum(terms_of(item).inside for item in self.queued())


def head_start(lead: float, deadline: float) -> float:
    """Seconds before an item's deadline at which its batch should leave, if its duration asks for `lead`."""
    return max(lead, min(deadline / 4, LEAST))


def too_late(items: Iterable[Item], outcomes: Iterable[Any], now: float) -> list[Item]:
    """Those of the items whose results come when their callers have gone, as their time was up."""
    return [
        item
        for item, outcome in zip(items, outcomes, strict=True)
        if item.left and terms_of(item).expires <= now and not isinstance(outcome, BaseException)
    ]
