"""The scheduler: longest work first, within its limits, and nothing leaks."""

import random

from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import Request
from batchloom.models.generation.scheduler import Scheduler

DEFAULTS = {"decoder_start_token_id": 2, "eos_token_id": 2}


def request(name, num_prompt_tokens=4, num_beams=1, max_new_tokens=8):
    params = GenerationParams(num_beams=num_beams, max_new_tokens=max_new_tokens).resolve(DEFAULTS)
    return Request(name, [5] * num_prompt_tokens, params)


def names(admitted):
    """Of the requests that start in the only lane."""
    return [one.request_id for one in admitted[0]]


def test_the_longest_work_starts_first_and_ties_keep_their_order():
    scheduler = Scheduler(max_sequences=3, max_prompt_tokens=100, max_cached_tokens=1000)
    for name, length in (("a", 5), ("b", 9), ("c", 5), ("d", 7)):
        scheduler.add(request(name, length))
    assert names(scheduler.admit()) == ["b", "d", "a"]


def test_beams_count_as_sequences():
    scheduler = Scheduler(max_sequences=10, max_prompt_tokens=100, max_cached_tokens=1000)
    for name in "abcd":
        scheduler.add(request(name, num_beams=4))
    assert names(scheduler.admit()) == ["a", "b"]


def test_prompts_of_one_step_stay_within_their_budget_and_the_rest_starts_with_the_next():
    scheduler = Scheduler(max_sequences=10, max_prompt_tokens=10, max_cached_tokens=1000)
    for name in "abc":
        scheduler.add(request(name, num_prompt_tokens=5))
    assert [names(scheduler.admit()) for _ in range(3)] == [["a", "b"], ["c"], []]


def test_cache_is_reserved_for_the_worst_case_and_given_back():
    scheduler = Scheduler(max_sequences=10, max_prompt_tokens=100, max_cached_tokens=30)
    first, second = request("a", 4, max_new_tokens=16), request("b", 4, max_new_tokens=12)
    scheduler.add(first)
    scheduler.add(second)
    assert names(scheduler.admit()) == ["a"]
    assert names(scheduler.admit()) == []
    scheduler.release(first)
    assert names(scheduler.admit()) == ["b"]


def test_a_request_larger_than_every_limit_runs_alone():
    scheduler = Scheduler(max_sequences=2, max_prompt_tokens=10, max_cached_tokens=30)
    scheduler.add(request("giant", num_prompt_tokens=50, num_beams=4))
    scheduler.add(request("small"))
    assert names(scheduler.admit()) == ["giant"]


def test_nothing_is_leaked_in_ten_thousand_random_steps():
    """Property: what is reserved is what runs, limits hold, and every request is started once."""
    choice = random.Random(0)
    scheduler = Scheduler(max_sequences=16, max_prompt_tokens=64, max_cached_tokens=500)
    started, added = [], 0
    for _ in range(10_000):
        for _ in range(choice.choice((0, 0, 1, 2))):
            scheduler.add(request(added, choice.randint(1, 90), choice.choice((1, 1, 2, 4, 20)), choice.randint(1, 40)))
            added += 1
        started += names(scheduler.admit())
        running = scheduler.running
        assert scheduler.num_running_sequences == sum(one.num_sequences for one in running)
        assert scheduler.num_reserved_tokens == sum(one.max_cached_tokens for one in running)
        assert len(running) <= 1 or scheduler.num_running_sequences <= scheduler.max_sequences
        assert len(running) <= 1 or scheduler.num_reserved_tokens <= scheduler.max_cached_tokens
        for one in choice.sample(
            sorted(running, key=lambda one: one.request_id), k=min(len(running), choice.randint(0, 3))
        ):
            scheduler.release(one)
    while scheduler.num_unfinished:
        started += names(scheduler.admit())
        for one in list(scheduler.running):
            scheduler.release(one)
    assert sorted(started) == list(range(added))
    assert (scheduler.num_running_sequences, scheduler.num_reserved_tokens) == (0, 0)


def several(num_lanes=2, **limits):
    limits = {"max_sequences": 256, "max_prompt_tokens": 10_000, "max_cached_tokens": 100_000} | limits
    return Scheduler(**limits, num_lanes=num_lanes)


def by_lane(admitted):
    return {lane: [one.request_id for one in requests] for lane, requests in admitted.items()}


def test_lanes_get_equal_shares_of_the_work_the_longest_first():
    scheduler = several()
    for name in range(40):
        scheduler.add(request(name, num_prompt_tokens=60 - name))
    first, second = by_lane(scheduler.admit((0, 1))).values()
    assert (first[:2], second[:2]) == ([0, 3], [1, 2])
    assert (len(first), len(second)) == (20, 20)
    assert abs(scheduler.loads[0].num_reserved_tokens - scheduler.loads[1].num_reserved_tokens) < 60


def test_a_lane_that_is_idle_alone_leaves_the_other_its_share():
    scheduler = several()
    for name in range(40):
        scheduler.add(request(name))
    assert len(scheduler.admit((0,))[0]) == 20
    assert len(scheduler.admit((0,))[0]) == 0
    assert len(scheduler.admit((1,))[1]) == 20


def test_few_sequences_stay_in_one_lane():
    scheduler = several()
    for name in range(31):
        scheduler.add(request(name))
    assert [len(requests) for requests in scheduler.admit((0, 1)).values()] == [31, 0]


def test_a_lane_that_closes_ends_what_it_has():
    scheduler = several()
    for name in range(40):
        scheduler.add(request(name))
    started = scheduler.admit((0, 1))
    for one in [*started[0][5:], *started[1][5:]]:
        scheduler.release(one)
    scheduler.add(request("late"))
    assert by_lane(scheduler.admit((0, 1))) == {0: ["late"], 1: []}
    assert [len(load.running) for load in scheduler.loads] == [6, 5]


def test_beams_are_not_kept_from_a_lane_by_a_share_that_they_straddle():
    scheduler = several(max_sequences=64)
    for name in range(11):
        scheduler.add(request(name, num_beams=4))
    assert sum(map(len, scheduler.admit((0, 1)).values())) == 11


def test_nothing_runs_beyond_the_limits_of_all_lanes():
    """Property: limits hold for all lanes together, whichever is idle, and every request is started once."""
    choice = random.Random(0)
    scheduler = several(3, max_sequences=64, max_prompt_tokens=200, max_cached_tokens=2000)
    started, added = [], 0
    for _ in range(5_000):
        for _ in range(choice.choice((0, 1, 2, 9))):
            scheduler.add(request(added, choice.randint(1, 90), choice.choice((1, 1, 2, 4, 20)), choice.randint(1, 40)))
            added += 1
        lanes = choice.sample(range(3), choice.randint(1, 3))
        for lane, requests in scheduler.admit(lanes).items():
            started += [one.request_id for one in requests]
            assert set(requests) <= scheduler.loads[lane].running
            assert len(requests) <= 1 or sum(len(one.prompt_ids) for one in requests) <= 200
        running = scheduler.running
        assert scheduler.num_running_sequences == sum(one.num_sequences for one in running)
        assert len(running) <= 1 or scheduler.num_running_sequences <= 64
        assert len(running) <= 1 or scheduler.num_reserved_tokens <= 2000
        assert running or not scheduler.num_waiting, "something waits, and nothing runs"
        for one in choice.sample(sorted(running, key=lambda one: one.request_id), k=choice.randint(0, len(running))):
            scheduler.release(one)
        if choice.random() < 0.01:
            before = (scheduler.max_prompt_tokens, scheduler.max_cached_tokens)
            scheduler.halve()
            assert not scheduler.running
            scheduler.max_prompt_tokens, scheduler.max_cached_tokens = before
            waiting = {one.request_id for _, _, one in scheduler._waiting}
            started = [name for name in started if name not in waiting]
    while scheduler.num_unfinished:
        started += [one.request_id for requests in scheduler.admit((0, 1, 2)).values() for one in requests]
        for one in list(scheduler.running):
            scheduler.release(one)
    assert sorted(started) == list(range(added))
    assert (scheduler.num_running_sequences, scheduler.num_reserved_tokens) == (0, 0)
