"""Continuous batching as a whole: the same answers under any load, and nothing leaked."""

import logging
import random
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchloom.models import Engine, GenerationParams
from batchloom.models.ranks.group import SINGLE

END = 2


class ScriptedModel:
    """After token t at position p comes (t * 7 + p) % 50, and the end token when that is below 4.

    It calls its context as any model does, so caches are filled, reordered and dropped; the result is not looked at.
    """

    is_encoder_decoder, max_positions, alibi_slopes = True, 4096, None
    num_layers, num_heads, head_dim = 1, 1, 2
    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(vocab_size=50)
    group = SINGLE
    generation_defaults: ClassVar = {"decoder_start_token_id": 5, "eos_token_id": END}

    def encode(self, input_ids_N, *_):
        return input_ids_N[:, None].float().expand(-1, 2)

    def cross_keys_values(self, hidden_ND):
        return [(hidden_ND[:, None], hidden_ND[:, None])]

    def decode(self, input_ids_N, positions_N, context):
        token_NHK = input_ids_N[:, None, None].float().expand(-1, 1, 2)
        context.attend(0, token_NHK, token_NHK, token_NHK)
        context.cross_attend(0, token_NHK)
        return torch.stack((input_ids_N, positions_N), dim=1)

    def local_logits(self, hidden_ND):
        follower_N = scripted(hidden_ND[:, 0], hidden_ND[:, 1])
        distance_NV = (torch.arange(50) - follower_N[:, None]).abs()
        return -distance_NV.float()


def scripted(token, position):
    follower = (token * 7 + position) % 50
    return torch.where(follower < 4, torch.full_like(follower, END), follower)


def scripted_answer(max_new_tokens):
    tokens, token = [], 5
    for position in range(max_new_tokens):
        token = int(scripted(torch.tensor([token]), torch.tensor([position])))
        tokens.append(token)
        if token == END:
            break
    return tokens


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_invariants_hold_after_every_step_of_a_long_random_run(monkeypatch, num_lanes):
    """10 000 steps: what runs, what is cached, what is searched and what is reserved are always the same requests."""
    monkeypatch.setattr("batchloom.models.generation.scheduler.FEWEST_SEQUENCES", 2)
    choice = random.Random(1)
    engine = Engine(ScriptedModel(), max_batch_tokens=200, max_slots=12, num_lanes=num_lanes)
    engine._scheduler.max_cached_tokens = 400
    scheduler = engine._scheduler
    added, answered, steps, used = 0, [], 0, set()
    while steps < 10_000:
        if engine.num_unfinished < 20 and choice.random() < 0.6:
            num_beams = choice.choice((1, 1, 1, 2, 4))
            params = GenerationParams(num_beams=num_beams, max_new_tokens=choice.randint(1, 12))
            engine.add((added, params.max_new_tokens, num_beams), [7] * choice.randint(1, 90), params)
            added += 1
        for output in engine.step():
            _, max_new_tokens, num_beams = output.request_id
            if num_beams == 1:
                assert output.outputs[0].token_ids == scripted_answer(max_new_tokens)
            answered.append(output.request_id[0])
        steps += 1
        for lane in engine._lanes.idle:  # the others are in a step
            check_lane(engine._lanes.runners[lane], scheduler.loads[lane])
            used |= {lane} if scheduler.loads[lane].running else set()
        assert len(scheduler.running) == sum(len(load.running) for load in scheduler.loads), "a request runs twice"
        if len(scheduler.running) > 1:
            assert scheduler.num_running_sequences <= 12
            assert scheduler.num_reserved_tokens <= 400
    while engine.num_unfinished:
        answered += [output.request_id[0] for output in engine.step()]
    assert sorted(answered) == list(range(added)), "a request was lost or answered twice"
    assert len(used) == num_lanes
    for runner in engine._lanes.runners:
        assert not runner._prompt_memories
        assert not runner._running


def check_lane(runner, load):
    searched = [request for one in runner._running.values() for request in one.cohort.requests]
    assert len(searched) == len(set(searched)), "a request is searched twice"
    assert set(searched) == set(runner._prompt_memories) == load.running
    for one in runner._running.values():
        assert one.cohort.requests, "an empty cohort was kept"
        assert one.cohort.history.num_rows == sum(pool.num_units * pool.width for pool in one.cache.pools)
        for pool in one.cache.pools:
            slots = pool._places + pool._free
            assert sorted(slots) == list(range(len(pool._num_entries))), "a slot is owned twice, or leaked"
    assert load.num_reserved_tokens == sum(request.max_cached_tokens for request in searched)
    assert load.num_sequences == sum(request.num_sequences for request in searched)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_answers_do_not_depend_on_batch_size_or_order(pair, data):
    """Property, on a real (tiny) model: any prompts, any mix of params, any number of slots, any order of arrival."""
    _, model = pair(data.draw(st.sampled_from(["bart", "mbart", "blenderbot", "blenderbot_small", "bloom"])))
    prompts = data.draw(st.lists(st.lists(st.integers(4, 210), min_size=1, max_size=30), min_size=2, max_size=6))
    kinds = st.sampled_from(
        [
            GenerationParams(max_new_tokens=7),
            GenerationParams(max_new_tokens=9, num_beams=2, num_return_sequences=2),
            GenerationParams(max_new_tokens=5, num_beams=4, length_penalty=2.0, no_repeat_ngram_size=2),
            GenerationParams(max_new_tokens=6, do_sample=True, num_return_sequences=2),
            GenerationParams(max_new_tokens=6, do_sample=True, num_beams=3, num_return_sequences=2),
        ]
    )
    each = data.draw(st.lists(kinds, min_size=len(prompts), max_size=len(prompts)))
    order = data.draw(st.permutations(range(len(prompts))))
    engine = Engine(model, max_slots=data.draw(st.integers(1, 12)), max_batch_tokens=data.draw(st.integers(1, 60)))
    found = {}
    for index in order:
        engine.add(index, prompts[index], each[index], seed=index)
        if data.draw(st.booleans()):
            found |= {one.request_id: one for one in engine.step()}
    while engine.num_unfinished:
        found |= {one.request_id: one for one in engine.step()}
    for index, (prompt, params) in enumerate(zip(prompts, each, strict=True)):
        alone = Engine(model)
        alone.add(0, prompt, params, seed=index)
        outputs = []
        while alone.num_unfinished:
            outputs += alone.step()
        assert [one.token_ids for one in found[index].outputs] == [one.token_ids for one in outputs[0].outputs]


class Scarce(ScriptedModel):
    """Has memory for the prompts of `room` tokens a step and as many running sequences, and then really fails."""

    def __init__(self, room):
        self.room = room

    def encode(self, input_ids_N, *others):
        self._allocate(len(input_ids_N))
        return super().encode(input_ids_N, *others)

    def decode(self, input_ids_N, *others):
        self._allocate(len(input_ids_N))
        return super().decode(input_ids_N, *others)

    def _allocate(self, amount):
        if amount > self.room:
            torch.empty(1 << 60, dtype=torch.uint8)


def test_running_out_of_memory_halves_the_batch_and_changes_no_answer(caplog):
    engine = Engine(Scarce(16))
    prompts = [[7] * (n % 5 + 1) for n in range(40)]
    with caplog.at_level(logging.WARNING):
        answers = engine.generate(prompts, GenerationParams(max_new_tokens=12))
    assert "out of memory with 40 requests" in caplog.text
    num_failures = caplog.text.count("out of memory")
    assert {tuple(answer.outputs[0].token_ids) for answer in answers} == {tuple(scripted_answer(12))}
    caplog.clear()
    engine.generate(prompts, GenerationParams(max_new_tokens=12))
    assert num_failures < 6
    assert "out of memory" not in caplog.text, "what was learned was forgotten"


def test_a_request_without_room_alone_is_an_error_and_the_others_are_answered(caplog):
    """And the budgets come back: halving again and again for one giant says nothing about the rest."""
    engine = Engine(Scarce(64), max_batch_tokens=60)
    scheduler = engine._scheduler
    budgets = (scheduler.max_prompt_tokens, scheduler.max_cached_tokens)
    params = GenerationParams(max_new_tokens=12)
    prompts = [[7] * 3, [7] * 65, [7] * 9, [7] * 900, [7] * 12]
    with caplog.at_level(logging.WARNING):
        small, giant, other, titan, last = engine.generate(prompts, params)
    for answer in (small, other, last):
        assert (answer.outputs[0].token_ids, answer.error) == (scripted_answer(12), None)
    for answer, num_tokens in ((giant, 65), (titan, 900)):
        assert answer.outputs == []
        assert f"A prompt of {num_tokens} tokens" in answer.error.message
        assert "Shorten the text" in answer.error.message
    assert budgets == (scheduler.max_prompt_tokens, scheduler.max_cached_tokens)
    assert (scheduler.num_running_sequences, scheduler.num_reserved_tokens) == (0, 0)
    assert not any(runner._prompt_memories for runner in engine._lanes.runners)


def test_lanes_that_run_out_of_memory_start_again_together(monkeypatch, caplog):
    """Some have no room while others step: what those did is done again, and every answer comes once."""
    monkeypatch.setattr("batchloom.models.generation.scheduler.FEWEST_SEQUENCES", 2)
    engine, params = Engine(Scarce(16), num_lanes=3), GenerationParams(max_new_tokens=12)
    prompts = [[7] * (n % 5 + 1) for n in range(60)] + [[7] * 70]
    for index, prompt in enumerate(prompts):
        engine.add(index, prompt, params)
    outputs = []
    with caplog.at_level(logging.WARNING):
        while engine.num_unfinished:
            outputs += engine.step()
    assert "out of memory" in caplog.text
    assert sorted(output.request_id for output in outputs) == list(range(61))
    by_id = {output.request_id: output for output in outputs}
    assert "A prompt of 70 tokens" in by_id.pop(60).error.message
    assert all(output.outputs[0].token_ids == scripted_answer(12) for output in by_id.values())
    assert not engine._scheduler.running
    assert not any(runner._prompt_memories for runner in engine._lanes.runners)


def test_a_lane_that_breaks_is_heard(monkeypatch):
    monkeypatch.setattr("batchloom.models.generation.scheduler.FEWEST_SEQUENCES", 1)

    class BreaksLater(ScriptedModel):
        def decode(self, input_ids_N, positions_N, context):
            if positions_N.max() > 3:
                raise RuntimeError("broken")
            return super().decode(input_ids_N, positions_N, context)

    with pytest.raises(RuntimeError, match="broken"):
        Engine(BreaksLater(), num_lanes=3).generate([[7]] * 9, GenerationParams(max_new_tokens=12))


def test_another_failure_is_not_taken_for_a_lack_of_memory():
    class Broken(ScriptedModel):
        def decode(self, *_):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Engine(Broken()).generate([[7]], GenerationParams(max_new_tokens=2))
