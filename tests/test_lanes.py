"""Which items leave together, with priorities, keys, weights and deadlines: against a naive list, and by example."""

from __future__ import annotations

import math
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ubatch._cost import Cost
from ubatch._lanes import Lanes
from ubatch._padding import OVERHEAD, alike
from ubatch._policy import Adaptive, Window
from ubatch._schedule import Fifo, claim_all
from ubatch._terms import Rules

INFINITE = math.inf


class Item:
    """An item that knows its number, and that nobody may take twice."""

    def __init__(self, number=0, arrived=0.0, terms=None):
        self.number = number
        self.arrived = arrived
        self.terms = terms
        self.left = False
        self.claims = 0

    def claim(self):
        self.claims += 1
        return not self.left

    def __repr__(self):
        return f"<{self.number}{' left' * self.left}>"


class Asked:
    """What a call asks for."""

    def __init__(self, priority=0, deadline=INFINITE, key=None):
        self.priority, self.deadline, self.key = priority, deadline, key


def item_for(rules, number, arrived, weight=1.0, **asked):
    """An item as the drivers make it."""
    terms = rules.terms((weight,), {}, arrived, Asked(**asked))
    return Item(number, arrived, terms)


def rules_with(**options):
    return Rules(weight=lambda weight: weight, **options)


def numbers(items):
    return [item.number for item in items]


class Model(RuleBasedStateMachine):
    """A list of items, searched anew for each batch."""

    aging = 1.0
    max_weight = 10.0

    def __init__(self):
        super().__init__()
        self.rules = rules_with(aging=self.aging, max_weight=self.max_weight)
        self.lanes = Lanes(Fifo(), self.rules)
        self.queue = []  # the model, in order of arrival
        self.served = {}  # of keys that wait: when they were last
        self.all = []
        self.now = 0.0
        self.latest = -INFINITE
        self.gone = 0
        self.expired = []

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(
        key=st.sampled_from("abc"),
        priority=st.sampled_from([0, 0, 0, -1, 2]),
        weight=st.sampled_from([0.0, 1.0, 3.0, 6.0, 9.0, 12.0]),
        deadline=st.sampled_from([INFINITE, INFINITE, 0.3, 2.0]),
        late=st.sampled_from([0.0, 0.0, 0.05]),
        behind=st.sampled_from([0.0, 0.0, 1.5]),
    )
    def append(self, key, priority, weight, deadline, late, behind):
        item = item_for(
            self.rules, len(self.all), self.now - late, weight, key=key, priority=priority, deadline=deadline
        )
        item.terms.behind = behind
        self.latest = item.since = max(self.latest, item.arrived)
        self.all.append(item)
        self.queue.append(item)
        self.lanes.append(item)

    @rule(data=st.data())
    def leave(self, data):
        if self.all:
            data.draw(st.sampled_from(self.all)).left = True
            self.lanes.stale = True

    def rank(self, item, since):
        if self.aging == INFINITE:
            return item.terms.priority, since, item.number
        return since + self.aging * item.terms.priority, since, item.number

    def counts(self, item):
        return not item.left and item.terms.expires > self.now

    def throw_away(self, item):
        self.queue.remove(item)
        if item.terms.expires <= self.now:
            self.expired.append(item)
        else:
            self.gone += 1

    def lane(self, key):
        return sorted((item for item in self.queue if item.terms.key == key), key=lambda one: self.rank(one, one.since))

    def turn(self, key):
        head = self.lane(key)[0]
        return self.rank(head, max(head.since, self.served.get(key, -INFINITE)))

    @rule(most=st.integers(1, 6))
    def take(self, most):
        taken, expected = [], []
        self.lanes.take(most, taken, self.now)
        keys = {item.terms.key for item in self.queue}
        if keys:
            key = min(keys, key=self.turn)
            for item in self.looked_at(self.lane(key), most):
                if expected and sum(one.terms.weight for one in [*expected, item]) > self.max_weight:
                    break
                expected.append(item)
                self.queue.remove(item)
            self.served[key] = self.now
        self.forget_idle_keys()
        assert claim_all(taken) == 0
        assert numbers(taken) == numbers(expected)

    def looked_at(self, lane, most):
        """The next items that count, those between them thrown away; as many as go together, or `most` to choose from.

        Where something was due before now, it is looked ahead for what need not be late.
        """
        found, late = [], []
        looks_ahead = None
        for item in lane:
            if not self.counts(item):
                self.throw_away(item)
                continue
            if looks_ahead is None:
                looks_ahead = any(other.terms.due <= self.now for other in self.queue)
            weight = sum(one.terms.weight for one in [*found, item])
            if len(found) == most or (found and not looks_ahead and weight > self.max_weight):
                break
            (late if item.terms.due <= self.now else found).append(item)
        return [*found, *late][:most]

    @rule(most=st.integers(1, 6))
    def purge(self, most):
        short = len(self.queue) <= 4 * most
        self.lanes.purge(most, self.now)
        if short:
            for item in [item for item in self.queue if not self.counts(item)]:
                self.throw_away(item)
            self.forget_idle_keys()
            assert not self.lanes.stale

    def forget_idle_keys(self):
        waiting = {item.terms.key for item in self.queue}
        self.served = {key: when for key, when in self.served.items() if key in waiting}

    @rule(data=st.data())
    def withdraw(self, data):
        if self.all:
            item = data.draw(st.sampled_from(self.all))
            assert self.lanes.withdraw(item) == (item in self.queue)
            if item in self.queue:
                self.queue.remove(item)
                self.forget_idle_keys()

    @precondition(lambda self: len(self.queue) > 3)
    @rule()
    def empty(self):
        items = []
        self.lanes.empty(items)
        assert {id(item) for item in items} == {id(item) for item in self.queue}
        assert len(items) == len(self.queue)
        self.queue.clear()
        self.served.clear()

    @invariant()
    def it_holds_what_the_model_holds(self):
        self.lanes._check()
        assert len(self.lanes) == len(self.queue)
        assert {id(item) for item in self.lanes.next(99)} == {id(item) for item in [*self.queue, *self.lanes.expired]}
        assert self.lanes.gone == self.gone
        assert {id(item) for item in self.lanes.expired} == {id(item) for item in self.expired}
        assert all(item.claims == 0 for item in self.queue)
        assert all(item.claims <= 1 for item in self.all)

    @invariant()
    def the_tightest_is_the_tightest(self):
        self.lanes._sort(self.now)
        assert self.lanes.tightest == min((item.terms.due for item in self.queue), default=INFINITE)


class ModelWithoutAging(Model):
    aging = INFINITE


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestModelWithoutAging = ModelWithoutAging.TestCase
TestModelWithoutAging.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def lanes_of(rules, *items):
    lanes = Lanes(Fifo(), rules)
    for item in items:
        lanes.append(item)
    return lanes


def batches(lanes, most=64, now=0.0):
    found = []
    while lanes:
        batch = []
        lanes.take(most, batch, now)
        found.append(numbers(batch))
    return found


# -- weights --------------------------------------------------------------------------------------------------


def test_the_weight_of_a_batch_is_bounded_and_nobody_is_overtaken():
    """Weights 6, 9, 3, 3, 3, 3 and a limit of 10."""
    rules = rules_with(max_weight=10.0)
    lanes = lanes_of(rules, *(item_for(rules, n, 0.0, weight) for n, weight in enumerate([6, 9, 3, 3, 3, 3])))
    assert batches(lanes) == [[0], [1], [2, 3, 4], [5]]


def test_an_item_that_is_too_heavy_runs_alone():
    """And those behind it go on."""
    rules = rules_with(max_weight=10.0)
    lanes = lanes_of(rules, *(item_for(rules, n, 0.0, weight) for n, weight in enumerate([1, 50, 1, 1])))
    assert batches(lanes) == [[0], [1], [2, 3]]


def test_padded_weight_counts_the_longest_for_each():
    """Three items of which the longest is 4 weigh 12."""
    rules = rules_with(max_weight=12.0, padded=True)
    lanes = lanes_of(rules, *(item_for(rules, n, 0.0, weight) for n, weight in enumerate([4, 4, 4, 4])))
    assert batches(lanes) == [[0, 1, 2], [3]]


def test_items_of_like_length_go_together_when_that_saves_padding():
    """Short ones do not wait to be padded to the length of a long one."""
    rules = rules_with(max_weight=4096.0, padded=True)
    lengths = [8, 500, 9, 480, 8, 10, 510, 9]
    lanes = lanes_of(rules, *(item_for(rules, n, 0.0, length) for n, length in enumerate(lengths)))
    assert batches(lanes) == [[0, 2, 4, 5, 7], [1, 3, 6]]


@given(
    st.lists(st.integers(0, 600).map(float), min_size=1, max_size=80),
    st.integers(1, 40),
    st.sampled_from([600.0, 2000.0, 16384.0]),
)
def test_what_goes_together_fits_has_the_first_and_is_no_worse_than_it_alone(weights, most, limit):
    """For whatever weights."""
    chosen = alike(weights, most, limit)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert len(chosen) <= most
    group = [weights[index] for index in chosen]
    assert len(group) == 1 or max(group) * len(group) <= limit

    def waste(group):
        return (OVERHEAD * limit + max(group) * len(group) - sum(group)) / len(group)

    assert waste(group) <= waste(weights[:1])


@given(st.integers(2, 40), st.integers(1, 50))
def test_equal_weights_leave_in_order_and_as_many_as_fit(count, most):
    """There is nothing to choose."""
    assert alike([10.0] * count, most, 200.0) == list(range(min(count, most, 20)))


def test_each_batch_takes_the_oldest_so_nothing_waits_for_ever():
    """A long item among a stream of short ones leaves when it is the oldest."""
    rules = rules_with(max_weight=1000.0, padded=True)
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, 10), item_for(rules, 1, 0.0, 400))
    number, taken = 2, []
    for _ in range(2):
        for _ in range(30):
            lanes.append(item_for(rules, number, 0.0, 10))
            number += 1
        batch = []
        lanes.take(16, batch, 0.0)
        taken.append(numbers(batch))
    assert [1 in batch for batch in taken] == [False, True]


# -- priorities -----------------------------------------------------------------------------------------------


def test_lower_priority_numbers_leave_first():
    """As in `queue.PriorityQueue`."""
    rules = rules_with()
    lanes = lanes_of(rules, *(item_for(rules, n, 0.0, priority=p) for n, p in enumerate([0, 5, -1, 0, -1])))
    assert batches(lanes, most=2) == [[2, 4], [0, 3], [1]]


def test_a_waiting_item_gains_a_level_in_each_aging():
    """Priority 2 gives way to what comes in the next 2 * aging seconds, and no longer."""
    rules = rules_with(aging=0.5)
    late = [item_for(rules, n, n * 0.25) for n in range(1, 10)]
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, priority=2), *late)
    order = [number for batch in batches(lanes, most=1, now=9.0) for number in batch]
    assert order == [1, 2, 3, 0, 4, 5, 6, 7, 8, 9]  # the one at exactly 1.0 came later, and waits


def test_without_aging_a_level_is_a_level():
    """However long one waits."""
    rules = rules_with(aging=INFINITE)
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, priority=1), item_for(rules, 1, 1e6))
    assert batches(lanes, most=1, now=1e6) == [[1], [0]]


def test_a_clock_that_goes_back_does_not_change_the_order():
    """First in, first out is by order of arrival, not by timestamp."""
    rules = rules_with()
    lanes = lanes_of(rules, *(item_for(rules, n, arrived) for n, arrived in enumerate([5.0, 3.0, 4.0, 1.0])))
    assert batches(lanes, now=2.0) == [[0, 1, 2, 3]]


# -- keys -----------------------------------------------------------------------------------------------------


def test_a_batch_has_one_key_and_all_that_is_there_of_it():
    """Also what is behind items of other keys."""
    rules = rules_with()
    lanes = lanes_of(rules, *(item_for(rules, n, n * 1.0, key=key) for n, key in enumerate("abaab")))
    assert batches(lanes, now=9.0) == [[0, 2, 3], [1, 4]]


def test_keys_that_always_wait_are_served_in_turn():
    """A key with a thousand items does not keep one with a few waiting for all of them."""
    rules = rules_with()
    lanes = lanes_of(rules, *(item_for(rules, n, n * 1e-6, key="flood") for n in range(100)))
    order, now = [], 1.0
    for turn in range(6):
        lanes.append(item_for(rules, 1000 + turn, now, key="single"))
        batch = []
        now += 1.0
        lanes.take(10, batch, now)
        order.append(batch[0].terms.key)
    assert order == ["flood", "single"] * 3


def test_a_thousand_keys_that_fell_idle_leave_nothing_behind():
    """No lane, no turn, no timestamps."""
    rules = rules_with()
    lanes = Lanes(Fifo(), rules)
    for key in range(1000):
        lanes.append(item_for(rules, key, 0.0, key=key, deadline=100.0))
        lanes.take(8, [], 0.0)
    lanes._check()
    assert len(lanes._lanes) == 0
    assert len(lanes._turns) + len(lanes._ages) + len(lanes._dues) < 300


# -- holding --------------------------------------------------------------------------------------------------


def test_a_full_batch_of_one_key_does_not_wait_for_another_keys_window():
    """Though the other one came first."""
    rules = rules_with()
    first = item_for(rules, 0, 0.0, key="a")
    lanes = lanes_of(rules, first, *(item_for(rules, n, 0.1, key="b") for n in range(1, 5)))
    policy = Window(1.0)
    assert lanes.hold(policy, 0.1, 4) is None
    assert policy.reason == "full"
    batch = []
    lanes.take(4, batch, 0.1)
    assert numbers(batch) == [1, 2, 3, 4]
    hold = lanes.hold(policy, 0.1, 4)
    assert hold is not None
    assert hold.until == 1.0
    assert hold.wake_at == 3


def test_the_oldest_leaves_when_its_window_is_over_though_a_more_urgent_one_waits():
    """While a worker is idle nobody waits longer than the timeout."""
    rules = rules_with()
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, key="a", priority=5), item_for(rules, 1, 0.9, key="b"))
    policy = Window(1.0)
    hold = lanes.hold(policy, 0.9, 4)
    assert hold is not None
    assert hold.until == 1.0
    assert lanes.hold(policy, 1.0, 4) is None
    batch = []
    lanes.take(4, batch, 1.0)
    assert numbers(batch) == [0]


def test_with_one_key_the_window_runs_from_the_oldest_not_from_the_most_urgent():
    """They leave together."""
    rules = rules_with()
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, priority=5), item_for(rules, 1, 0.9))
    policy = Window(1.0)
    assert lanes.hold(policy, 0.9, 4).until == 1.0
    assert lanes.hold(policy, 1.0, 4) is None
    batch = []
    lanes.take(4, batch, 1.0)
    assert numbers(batch) == [1, 0]


def test_a_hold_ends_in_time_for_a_deadline():
    """As long before it as a batch is expected to take, and half as long again."""
    rules = rules_with()
    policy = Window(10.0)
    policy.observe()
    for _ in range(200):
        policy.finished(0.0, 1, 0.2, 0)
    lanes = lanes_of(rules, item_for(rules, 0, 0.0), item_for(rules, 1, 1.0, deadline=4.0))
    hold = lanes.hold(policy, 1.0, 64)
    assert hold.until == pytest.approx(5.0 - 1.5 * policy.cost.predict(2))
    assert lanes.tight == 5.0
    assert lanes.hold(policy, 4.9, 64) is None
    assert policy.reason == "deadline"


def test_a_hold_leaves_the_time_that_is_needed_behind():
    """It says so of the batch; what has expired is another matter."""
    rules, policy = rules_with(), Window(10.0)
    policy.observe()
    policy.finished(0.0, 1, 0.2, 0)
    item = item_for(rules, 0, 0.0, deadline=4.0)
    item.terms.behind = 1.0
    lanes = lanes_of(rules, item)
    assert lanes.hold(policy, 0.0, 64).until == pytest.approx(4.0 - 1.0 - 1.5 * policy.cost.predict(1))
    assert lanes.tight == 3.0
    assert lanes.hold(policy, 3.9, 64) is None
    assert not lanes.expired
    batch = []
    lanes.take(64, batch, 3.9)
    assert numbers(batch) == [0]


def test_items_that_would_be_late_go_only_where_there_is_room():
    """Under overload the others can be in time; where there is room they cost little, and may be lucky."""
    rules, cost = rules_with(max_weight=100.0), Cost()
    cost.update(2, 1.0)
    deadlines = [1.2, 9.0, 1.3, 9.0, 9.0]
    lanes = lanes_of(rules, *(item_for(rules, n, 0.0, deadline=deadline) for n, deadline in enumerate(deadlines)))
    taken = []
    for most in (2, 3):
        batch = []
        lanes.take(most, batch, 0.0, cost)
        lanes._check()
        taken.append(numbers(batch))
    assert taken == [[1, 3], [4, 0, 2]]


def test_a_hold_ends_at_half_the_time_while_nothing_is_known_of_the_cost():
    """Rather too early than too late."""
    rules = rules_with()
    policy = Window(10.0)
    policy.observe()
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, deadline=4.0))
    assert lanes.hold(policy, 0.0, 64).until == 2.0


def test_a_batch_that_is_full_by_weight_is_not_held():
    """Though more would fit by number; and before that the worker is told when to look again."""
    rules = rules_with(max_weight=10.0)
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, 3), item_for(rules, 1, 0.0, 3))
    policy = Window(1.0)
    hold = lanes.hold(policy, 0.0, 64)
    assert hold.wake_at == 1
    lanes.append(item_for(rules, 2, 0.0, 5))
    assert lanes.hold(policy, 0.0, 64) is None
    assert policy.reason == "full"


def test_nothing_queued_is_told():
    """A driver may be too late."""
    with pytest.raises(IndexError):
        Lanes(Fifo(), Rules()).hold(Window(1.0), 0.0, 4)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([0, -1, 3]), st.integers(0, 200)), min_size=1, max_size=12
    ),
    st.integers(1, 8),
    st.floats(0, 4),
)
def test_while_a_worker_is_idle_no_item_waits_longer_than_the_timeout(calls, most, later):
    """Whatever the keys and priorities: each hold ends when the oldest item's time is up, or before."""
    rules, policy = rules_with(), Window(1.0)
    calls.sort(key=lambda call: call[2])
    items = [item_for(rules, n, at / 100, key=key, priority=p) for n, (key, p, at) in enumerate(calls)]
    lanes = lanes_of(rules, *items)
    now, waiting = items[-1].arrived + later, {item.number: item for item in items}
    while waiting:
        hold = lanes.hold(policy, now, most)
        oldest = min(item.arrived for item in waiting.values())
        if hold is not None:
            assert hold.until <= oldest + 1.0
            now = max(now, hold.until)  # nobody comes: what was held leaves then
        batch = []
        lanes.take(most, batch, now)
        assert 0 < len(batch) <= most
        assert hold is None or oldest in [item.arrived for item in batch]
        for item in batch:
            del waiting[item.number]


def test_the_adaptive_policy_is_asked_as_well():
    """With nothing learned it is greedy."""
    rules = rules_with()
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, key="a"), item_for(rules, 1, 0.0, key="b"))
    assert lanes.hold(Adaptive(), 0.0, 8) is None


# -- how many may wait ----------------------------------------------------------------------------------------


class Door(RuleBasedStateMachine):
    """A queue with a bound, and a lobby: who is in, who waits, who has left."""

    def __init__(self):
        super().__init__()
        self.rules = rules_with(max_queue=4)
        self.lanes = Lanes(Fifo(), self.rules)
        self.inside, self.lobby, self.all = [], [], []  # the model; those who have left are not in it

    def live(self, items):
        return [item for item in items if not item.left]

    @rule(count=st.integers(1, 6), block=st.booleans())
    def offer(self, count, block):
        items = [item_for(self.rules, len(self.all) + n, 0.0) for n in range(count)]
        room = 0 if self.lanes.lobby else max(0, self.rules.max_queue - len(self.inside))
        room = min(room, count)
        accepted = self.lanes.admission.offer(items, block)
        if room < count and not block:
            assert accepted is None
            return
        assert accepted == room
        self.all += items
        self.inside += items[:room]
        self.lobby += items[room:]

    @rule(data=st.data())
    def leave(self, data):
        if self.all:
            item = data.draw(st.sampled_from(self.all))
            item.left = True
            self.lanes.depart(item)
            self.inside, self.lobby = self.live(self.inside), self.live(self.lobby)

    @rule(most=st.integers(1, 5))
    def take(self, most):
        batch = []
        self.lanes.take(most, batch, 0.0)
        assert numbers(batch) == numbers(self.inside[:most])
        del self.inside[:most]

    @rule()
    def let_in(self):
        came = self.live(self.lanes.admission.let_in())
        expected = self.lobby[: max(0, self.rules.max_queue - len(self.inside))]
        assert numbers(came) == numbers(expected)
        self.inside += expected
        del self.lobby[: len(expected)]

    @rule(most=st.integers(1, 6), there_was_none=st.booleans())
    def reconfigure(self, most, there_was_none):
        self.rules.max_queue = most
        if there_was_none:  # by now the items inside may be counted already, as those who wait outside are not
            self.lanes.admission.begin(self.lanes.queued())

    @rule()
    def send_away(self):
        away = []
        self.lanes.admission.clear(away)
        assert numbers(self.live(away)) == numbers(self.lobby)
        self.lobby.clear()

    @rule(data=st.data())
    def withdraw(self, data):
        if self.all:
            item = data.draw(st.sampled_from(self.all))
            there = item in self.inside or item in self.lobby
            assert self.lanes.withdraw(item) or not there
            self.inside = [other for other in self.inside if other is not item]
            self.lobby = [other for other in self.lobby if other is not item]

    @invariant()
    def it_counts_what_the_model_counts(self):
        self.lanes.admission._account()
        self.lanes._check()
        assert self.lanes.admission._inside == len(self.inside)
        assert numbers(self.live(self.lanes.lobby)) == numbers(self.lobby)


TestDoor = Door.TestCase
TestDoor.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_a_bound_counts_those_that_are_in_the_queue_alone():
    """Not who waits outside, nor who is about to be told that his time is up."""
    rules = rules_with(max_queue=1)
    lanes = Lanes(Fifo(), rules)
    lanes.admission.offer([item_for(rules, 0, 0.0, deadline=1.0)], block=True)
    lanes.admission.offer([item_for(rules, 1, 0.0)], block=True)
    lanes.take(1, [], 2.0)
    assert numbers(lanes.expired) == [0]
    lanes.admission.begin(lanes.queued())
    assert numbers(lanes.admission.let_in()) == [1]
    lanes._check()


def test_callers_that_have_gone_do_not_stay_in_the_lobby():
    """Though there is no room for long."""
    rules = rules_with(max_queue=1)
    lanes = Lanes(Fifo(), rules)
    lanes.admission.offer([item_for(rules, 0, 0.0)], block=True)
    for n in range(1000):
        item = item_for(rules, n, 0.0)
        lanes.admission.offer([item], block=True)
        item.left = True
        lanes.depart(item)
    assert len(lanes.lobby) < 200


def test_a_full_queue_is_not_held():
    """Nobody else could come."""
    rules = rules_with(max_queue=2)
    lanes = lanes_of(rules, item_for(rules, 0, 0.0), item_for(rules, 1, 0.0))
    assert lanes.hold(Window(100.0), 0.0, 64) is None


def test_a_key_that_cannot_be_compared_fails_its_item_alone():
    """It is found out when it is sorted."""

    class Odd:
        def __hash__(self):
            return hash("a")

        def __eq__(self, other):
            raise ArithmeticError

    rules = rules_with()
    items = [item_for(rules, n, 0.0, key=key) for n, key in enumerate(["a", Odd(), "a"])]
    lanes = lanes_of(rules, *items)
    assert batches(lanes) == [[0, 2]]
    assert [(item, type(error)) for item, error in lanes.failed] == [(items[1], ArithmeticError)]


def test_nothing_is_kept_when_nothing_waits():
    """Neither keys nor items."""

    class Key:
        pass

    rules = rules_with()
    key = Key()
    lanes = lanes_of(rules, item_for(rules, 0, 0.0, key=key, deadline=9.0))
    lanes.hold(Window(1.0), 0.0, 4)
    ref = weakref.ref(key)
    del key
    batch = []
    lanes.take(4, batch, 0.0)
    batch.clear()
    assert ref() is None


# -- terms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "error"),
    [("3", TypeError), (None, TypeError), (-1, ValueError), (math.nan, ValueError), (INFINITE, ValueError)],
)
def test_a_weight_must_be_a_number(weight, error):
    """The message has its value."""
    with pytest.raises(error, match=repr(weight)):
        rules_with().terms((weight,), {}, 0.0, None)


def test_a_key_must_be_hashable():
    """It is found out in the call that has it."""
    with pytest.raises(TypeError, match="unhashable"):
        Rules(key=lambda item: item).terms(([],), {}, 0.0, None)
