"""The paged backend gives the answers of the pooled one; and graphs read nothing but their static inputs."""

import logging
import random
from types import SimpleNamespace

import pytest
import torch

from batchloom.models import Engine, GenerationParams
from batchloom.models.generation import runner
from batchloom.models.generation.memory.cpu.backend import PooledBackend
from batchloom.models.generation.memory.gpu.backend import PagedBackend
from batchloom.models.generation.memory.gpu.blocks import BlockStore
from batchloom.models.generation.memory.gpu.graphs import Graphs

FAMILIES = ["bart", "mbart", "blenderbot", "bloom", "bart_causal"]
# Documents of one to three blocks; new tokens of up to two blocks a row, or five a unit of four beams.
PROMPTS = [
    [(7 * row + 3 * place) % 200 + 5 for place in range(length)] for row, length in enumerate([1, 31, 60, 33, 5])
]
TEMPLATE = [(11 * place) % 190 + 9 for place in range(70)]
MIXED = [
    GenerationParams(max_new_tokens=30, min_new_tokens=30),
    GenerationParams(max_new_tokens=33, num_beams=4, num_return_sequences=2, min_new_tokens=20),
    GenerationParams(max_new_tokens=20, num_beams=3, no_repeat_ngram_size=2, length_penalty=2.0),
    GenerationParams(max_new_tokens=25, do_sample=True, top_k=20, num_return_sequences=5),
    GenerationParams(max_new_tokens=12, do_sample=True, num_beams=2, num_return_sequences=2),
]


@pytest.fixture
def answers(monkeypatch):
    """answers(backend, model, prompts, params, ...): what an engine with this backend answers."""

    def get(backend, model, prompts, params, **settings):
        monkeypatch.setattr(runner, "backend_of", backend)
        return Engine(model, **settings).generate(prompts, params, seed=5)

    return get


def assert_equal(found, expected):
    for one, two in zip(found, expected, strict=True):
        assert [own.token_ids for own in one.outputs] == [own.token_ids for own in two.outputs]
        # Sums in another order: a few roundings of float32 in each step's log-probability.
        scores = [own.score for own in two.outputs]
        assert [own.score for own in one.outputs] == pytest.approx(scores, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("params", MIXED, ids=["greedy", "beam 4", "beam 3", "samples", "beam samples"])
@pytest.mark.parametrize("family", FAMILIES)
def test_paged_blocks_give_the_answers_of_pools(pair, answers, family, params):
    _, model = pair(family)
    assert_equal(
        answers(PagedBackend, model, PROMPTS, params, max_slots=9),
        answers(PooledBackend, model, PROMPTS, params, max_slots=9),
    )


@pytest.mark.parametrize("family", ["bart", "bloom"])
def test_searches_of_all_kinds_share_blocks_and_are_refilled(pair, answers, family):
    _, model = pair(family)
    prompts, params = PROMPTS * 4, [MIXED[place % 5] for place in range(20)]
    found = answers(PagedBackend, model, prompts, params, max_slots=13, max_batch_tokens=70)
    assert_equal(found, answers(PooledBackend, model, prompts, params))


def test_prompts_that_begin_alike_read_copies_of_the_beginning(pair, answers):
    """One of them ends with the beginning, but for its last token, and one has nothing of it."""
    _, model = pair("bloom")
    prompts = [TEMPLATE + ending for ending in ([5], [6, 7, 8], [9] * 40, [10, 11])] + [PROMPTS[1]]
    for params in MIXED:
        assert_equal(answers(PagedBackend, model, prompts, params), answers(PooledBackend, model, prompts, params))


def test_every_block_has_one_owner_after_each_step(pair, monkeypatch):
    _, model = pair("bart")
    monkeypatch.setattr(runner, "backend_of", PagedBackend)
    choice, engine, added = random.Random(2), Engine(model, max_slots=12), 0
    for _ in range(300):
        if engine.num_unfinished < 20 and choice.random() < 0.6:
            params = GenerationParams(num_beams=choice.choice((1, 1, 2, 4)), max_new_tokens=choice.randint(1, 40))
            engine.add(added, [7] * choice.randint(1, 90), params)
            added += 1
        engine.step()
        assert_each_owned_once(engine._lanes.runners[0])
    while engine.num_unfinished:
        engine.step()
    for store in engine._lanes.runners[0]._backend._stores:
        assert store.num_taken == store._num_reserved == 2, "a block was leaked"


def assert_each_owned_once(lane):
    generated_store, prompt_store = lane._backend._stores
    generated = [block for one in lane._running.values() for block in one.cache.blocks_GM.flatten().tolist() if block]
    prompts = [block for prompt in lane._prompt_memories.values() for block in prompt.blocks.tolist()]
    for store, held in ((generated_store, generated), (prompt_store, prompts)):
        assert sorted([0, 1, *held, *store._free]) == list(range(store.end))


def test_running_out_of_memory_while_blocks_grow_changes_no_answer(pair, answers, monkeypatch, caplog):
    """Arrays that cannot grow beyond some blocks: the engine halves, and what ran starts again in new arrays."""
    _, model = pair("bart")
    prompts, params = PROMPTS * 6, MIXED[1]
    expected = answers(PooledBackend, model, prompts, params)
    grow = BlockStore._resize

    def limited(self, capacity, num_readers):
        if capacity > 40:
            torch.empty(1 << 60, dtype=torch.uint8)
        grow(self, capacity, num_readers)

    monkeypatch.setattr(BlockStore, "_resize", limited)
    with caplog.at_level(logging.WARNING):
        found = answers(PagedBackend, model, prompts, params)
    assert "out of memory with" in caplog.text
    assert_equal(found, expected)


class Replayed:
    """In place of a CUDA graph: computes again from the same inputs, into the same logits.

    Unlike a graph it would follow a tensor that has moved, so it looks at addresses.
    """

    num_captured = num_replayed = 0

    @classmethod
    def capture(cls, graphs, compute):
        cls.num_captured += 1
        logits_NV, addresses = compute(), graphs.addresses()

        def replay():
            cls.num_replayed += 1
            assert graphs.addresses() == addresses
            logits_NV.copy_(compute())

        return SimpleNamespace(replay=replay), logits_NV


@pytest.fixture
def captures(monkeypatch):
    """Let backends capture where there is no GPU, by calling `capture`."""

    def prepare(capture):
        def make(model):
            backend = PagedBackend(model)
            backend._graphs._captures = True
            backend._graphs.addresses = lambda: [
                tensor.data_ptr()
                for store in backend._stores
                for tensor in (*store.layers, store.descent_BRS, store.position_BS)
            ]
            return backend

        monkeypatch.setattr(Graphs, "_capture", capture)
        return make

    return prepare


@pytest.mark.parametrize("family", ["bart", "bloom"])
def test_a_replayed_step_depends_on_its_static_inputs_alone(pair, answers, captures, monkeypatch, family):
    _, model = pair(family)
    prompts, params = PROMPTS * 4, [MIXED[place % 5] for place in range(20)]
    monkeypatch.setattr(Replayed, "num_captured", 0)
    monkeypatch.setattr(Replayed, "num_replayed", 0)
    capture = captures(lambda self, compute: Replayed.capture(self, compute))
    assert_equal(answers(capture, model, prompts, params, max_slots=13), answers(PooledBackend, model, prompts, params))
    assert Replayed.num_replayed > Replayed.num_captured > 0


def test_where_capturing_fails_steps_run_eagerly_and_one_line_says_so(pair, answers, captures, caplog):
    _, model = pair("bart")

    def fail(self, compute):  # noqa: ARG001
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        found = answers(captures(fail), model, PROMPTS, MIXED[0])
    assert caplog.text.count("run eagerly from now on") == 1
    assert "not permitted" in caplog.text
    assert_equal(found, answers(PooledBackend, model, PROMPTS, MIXED[0]))
