"""Prompts with a common prefix: it is computed once, and no answer changes."""

import pytest
import torch

from batchloom.models import Engine, GenerationParams, load_model
from batchloom.models.generation.memory import prefill
from batchloom.models.generation.memory.prefixes import MIN_SHARED, Prefix, Prefixes
from batchloom.models.layers.native.library import dense_kernels
from tests.models.generation.conftest import make_checkpoint

TEMPLATE = [(7 * n) % 200 + 5 for n in range(MIN_SHARED + 8)]
OTHER = [(11 * n) % 200 + 5 for n in range(MIN_SHARED)]


def test_the_longest_common_beginning_is_found_and_the_last_token_left_out():
    prefixes = Prefixes()
    assert prefixes.missing([[*TEMPLATE, 9, 8], [*TEMPLATE, 9, 7], [*OTHER, 1]]) == [(*TEMPLATE, 9)]
    assert prefixes.missing([TEMPLATE, TEMPLATE]) == [tuple(TEMPLATE[:-1])]
    assert prefixes.missing([[*OTHER, 1], [5, 6], TEMPLATE[:-30], TEMPLATE[:-30]]) == []


@pytest.mark.parametrize("family", ["bloom", "bart_causal"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_are_the_same_with_and_without_a_shared_prefix(pair, family, num_beams):
    _, model = pair(family)
    generator = torch.Generator().manual_seed(0)
    tails = [torch.randint(4, 211, (length,), generator=generator).tolist() for length in (1, 1, 5, 12, 3)]
    prompts = [[*TEMPLATE, *tail] for tail in tails] + [[*OTHER, *tail] for tail in tails] + tails
    params = GenerationParams(max_new_tokens=10, num_beams=num_beams, no_repeat_ngram_size=2)
    engine = Engine(model, max_slots=9)
    for answer, prompt in zip(engine.generate(prompts, params), prompts, strict=True):
        (alone,) = Engine(model).generate([prompt], params)  # one prompt shares with nobody
        assert [one.token_ids for one in answer.outputs] == [one.token_ids for one in alone.outputs]
        assert answer.outputs[0].score == pytest.approx(alone.outputs[0].score, abs=1e-4)


def test_a_shared_prefix_is_computed_once(pair):
    _, model = pair("bloom")
    engine = Engine(model)
    engine.generate([[*TEMPLATE, n] for n in range(10, 30)], GenerationParams(max_new_tokens=2))
    assert engine.stats.num_prompt_tokens == 20 * (len(TEMPLATE) + 1)
    assert engine.stats.num_padded_prompt_tokens == len(TEMPLATE) + 20


@pytest.mark.parametrize("family", ["bart", "bloom", "bart_causal"])
def test_products_of_each_prompts_own_give_the_answers_of_fused_attention(pair, family, monkeypatch):
    """What bfloat16 takes on a CPU, in float32 here: scores within 1e-4, as two orders of summing are."""
    _, model = pair(family)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(4, 211, (length,), generator=generator).tolist() for length in (40, 1, 2, 17, 33)]
    params = GenerationParams(max_new_tokens=10, num_beams=2)
    fused = Engine(model).generate(prompts, params)
    monkeypatch.setattr(prefill, "_prefers_products", lambda _: True)
    for one, other in zip(Engine(model).generate(prompts, params), fused, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].score == pytest.approx(other.outputs[0].score, abs=1e-4)


@pytest.mark.skipif(
    dense_kernels(torch.bfloat16) is None, reason="no compiler, or a processor without bfloat16 kernels"
)
@pytest.mark.parametrize("family", ["bloom", "bart_causal"])
def test_by_kernels_what_follows_a_prefix_has_the_bits_of_prompts_that_were_read_whole(tmp_path, family):
    make_checkpoint(str(tmp_path), family)
    model = load_model(str(tmp_path), dtype="bfloat16")
    tails = [[9], [7, 8, 9, 10, 11], list(range(20, 60))]
    first, _ = prefill._keys_values(model, [TEMPLATE], None)
    (memory,) = prefill.split_memories(first, [len(TEMPLATE)], 0, model.alibi_slopes)
    found, _ = prefill._keys_values(model, tails, Prefix(tuple(TEMPLATE), memory))
    whole, _ = prefill._keys_values(model, [[*TEMPLATE, *tail] for tail in tails], None)
    own = torch.cat([torch.arange(-len(tail), 0) + end for tail, end in zip(tails, _ends(tails), strict=True)])
    for (k_NHK, v_NHK), (k_SHK, v_SHK) in zip(found, whole, strict=True):
        assert torch.equal(k_NHK, k_SHK[own])
        assert torch.equal(v_NHK, v_SHK[own])


@pytest.mark.skipif(
    dense_kernels(torch.bfloat16) is None, reason="no compiler, or a processor without bfloat16 kernels"
)
def test_by_kernels_a_prompt_has_its_bits_beside_a_long_one(tmp_path):
    """A neighbour of more than 1,024 tokens took all prompts to another kind of attention."""
    make_checkpoint(str(tmp_path), "bloom")
    model = load_model(str(tmp_path), dtype="bfloat16")
    long = TEMPLATE * (prefill.MAX_TOKENS_BY_PRODUCTS // len(TEMPLATE) + 1)
    beside, _ = prefill._keys_values(model, [TEMPLATE, long], None)
    alone, _ = prefill._keys_values(model, [TEMPLATE], None)
    for both, own in zip(beside, alone, strict=True):
        assert all(torch.equal(x_NHK[: len(TEMPLATE)], y_NHK) for x_NHK, y_NHK in zip(both, own, strict=True))


def _ends(tails):
    return [sum(len(TEMPLATE) + len(tail) for tail in tails[: number + 1]) for number in range(len(tails))]
