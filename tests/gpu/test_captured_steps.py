"""Captured steps on a GPU: the tokens of plain attention there, and of the CPU. Needs neither Ray nor transformers."""

import logging

import pytest
import torch

from batchloom.models import Engine, GenerationParams
from batchloom.models.generation import runner
from batchloom.models.generation.memory.cpu.backend import PooledBackend
from batchloom.models.generation.memory.gpu import graphs
from batchloom.models.generation.memory.gpu.backend import PagedBackend
from batchloom.models.generation.memory.gpu.blocks import BlockStore
from batchloom.models.generation.memory.gpu.fused import FusedReader
from batchloom.models.generation.memory.gpu.graphs import Graphs
from batchloom.models.kernels import for_a_graph
from benchmarks.random_model import random_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
PROMPTS = [[(7 * row + 3 * place) % 200 + 5 for place in range(9 * row + 1)] for row in range(12)] * 3
SEARCHES = {
    "greedy": GenerationParams(max_new_tokens=40, min_new_tokens=40),
    "beams": GenerationParams(max_new_tokens=40, min_new_tokens=20, num_beams=4, num_return_sequences=4),
    "bans": GenerationParams(max_new_tokens=40, num_beams=3, no_repeat_ngram_size=2, repetition_penalty=1.2),
    "samples": GenerationParams(max_new_tokens=20, do_sample=True, num_return_sequences=3),
}


def said(engine, params, prefixes=None):
    answers = engine.generate(PROMPTS, params, seed=3, answer_prefixes=prefixes)
    return [[one.token_ids for one in answer.outputs] for answer in answers]


@pytest.mark.parametrize("params", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("name", ["tiny-bart", "tiny-bloom"])
def test_captured_steps_say_what_plain_attention_says(monkeypatch, name, params):
    model = random_model(name, torch.device("cuda", 0), torch.float32, deviation=0.4)
    engine = Engine(model, max_slots=20)
    assert isinstance(engine._lanes.runners[0]._backend, PagedBackend)
    assert engine._lanes.runners[0]._backend._reader is FusedReader
    found = said(engine, params)
    assert engine._lanes.runners[0]._backend._graphs._captures, "capturing failed"
    assert engine._lanes.runners[0]._backend._graphs.num_steps["replayed"] > 0
    assert said(engine, params) == found, "a second run, mostly replayed, says something else"
    monkeypatch.setattr(runner, "backend_of", PooledBackend)
    assert said(Engine(model), params) == found


@pytest.mark.parametrize("params", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("name", ["tiny-bart", "tiny-bloom"])
def test_captured_steps_go_on_behind_what_answers_begin_with(monkeypatch, name, params):
    """A third of them begin with nothing, the longest with more than a block."""
    prefixes = [[(5 * row + place) % 190 + 7 for place in range(row % 3 * (row % 20))] for row in range(len(PROMPTS))]
    model = random_model(name, torch.device("cuda", 0), torch.float32, deviation=0.4)
    engine = Engine(model, max_slots=20)
    found = said(engine, params, prefixes)
    assert engine._lanes.runners[0]._backend._graphs.num_steps["replayed"] > 0
    monkeypatch.setattr(runner, "backend_of", PooledBackend)
    assert said(Engine(model), params, prefixes) == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_captured_steps_are_eager_steps_in_half_precision(monkeypatch, dtype):
    """The same kernels on the same shapes: not one bit may differ. All steps are captured, or none is."""
    model = random_model("tiny-bloom", torch.device("cuda", 0), dtype, deviation=0.4)
    monkeypatch.setattr(graphs, "EAGER_USES", 0)
    engine = Engine(model)
    captured = said(engine, SEARCHES["beams"])
    assert not engine._lanes.runners[0]._backend._graphs.num_steps["eager"]

    def execute(_, inputs, compute):
        with for_a_graph():  # in eager steps few rows have no kernel for norms of sums
            return compute(inputs)

    monkeypatch.setattr(Graphs, "execute", execute)
    assert said(Engine(model), SEARCHES["beams"]) == captured


def test_a_step_waits_for_the_device_once():
    """torch itself warns at whatever makes the host wait."""
    model = random_model("tiny-bart", torch.device("cuda", 0), torch.float32, deviation=0.4)
    engine = Engine(model)
    for row, prompt in enumerate(PROMPTS):
        engine.add(row, prompt, SEARCHES["bans"] if row % 2 else SEARCHES["greedy"])
    for _ in range(6):
        engine.step()
    for _ in range(4):
        torch.cuda.set_sync_debug_mode("warn")
        with pytest.warns(UserWarning, match="synchronizing") as waits:
            engine.step()
        torch.cuda.set_sync_debug_mode("default")
        assert sum("synchronizing" in str(one.message) for one in waits) <= 4  # two cohorts, and those who end


def test_memory_that_runs_out_while_blocks_grow_halves_what_runs(monkeypatch, caplog):
    model = random_model("tiny-bart", torch.device("cuda", 0), torch.float32, deviation=0.4)
    expected = said(Engine(model), SEARCHES["beams"])
    grow = BlockStore._resize

    def limited(self, capacity, num_readers):
        if capacity > 100:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        grow(self, capacity, num_readers)

    monkeypatch.setattr(BlockStore, "_resize", limited)
    with caplog.at_level(logging.WARNING):
        assert said(Engine(model), SEARCHES["beams"]) == expected
    assert "out of memory with" in caplog.text


@pytest.mark.parametrize("params", SEARCHES.values(), ids=SEARCHES)
def test_a_row_that_is_not_finite_ends_and_leaves_its_neighbours_their_answers(params):
    """With replayed steps: the flag is what is fetched with the tokens."""
    model = random_model("tiny-bart", torch.device("cuda", 0), torch.float32, deviation=0.4)
    engine = Engine(model, max_slots=20)
    expected = said(engine, params)
    (weight,) = (weight for name, weight in model.named_parameters() if name.endswith("encoder.embed_positions.weight"))
    with torch.no_grad():
        weight[60] = torch.nan  # positions are two behind: prompts of 59 tokens and more
    answers = engine.generate(PROMPTS, params, seed=3)
    assert engine._lanes.runners[0]._backend._graphs.num_steps["replayed"] > 0
    for prompt, answer, own in zip(PROMPTS, answers, expected, strict=True):
        assert (answer.error is not None) == (len(prompt) > 58)
        assert answer.error is not None or [one.token_ids for one in answer.outputs] == own
