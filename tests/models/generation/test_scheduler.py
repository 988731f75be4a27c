"""The scheduler: longest work first, within its limits, and nothing leaks."""

import random

from models.generation.params import GenerationParams
from models.generation.scheduler import Scheduler
from models.generation.sequence import Request

DEFAULTS = {"decoder_start_token_id": 2, "eos_token_id": 2}


def request(name, num_prompt_tokens=4, num_beams=1, max_new_tokens=8):
    params = GenerationParams(num_beams=num_beams, max_new_tokens=max_new_tokens).resolve(DEFAULTS)
    return Request(name, [5] * num_prompt_tokens, params)


def names(requests):
    return [one.request_id for one in requests]


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
    assert scheduler.admit() == []
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
