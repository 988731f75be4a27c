"""Answers that begin with given tokens are those of transformers' generate with decoder_input_ids, in float32.

The reference answers each prompt alone. Ours answers it alone, and beside others with other prefixes or none.
Scores may differ as in test_parity.py.
"""

import pytest
import torch

from batchloom.models import Engine, GenerationParams
from batchloom.models.errors import RequestError
from batchloom.models.generation import runner
from batchloom.models.generation.memory.cpu.backend import PooledBackend
from batchloom.models.generation.memory.gpu.backend import PagedBackend
from batchloom.models.generation.requests import Request
from tests.models.generation.test_parity import (
    BAD_WORDS,
    BIASES,
    BLENDERBOT,
    CNN,
    ENDS,
    EVEN,
    FAMILIES,
    MANY_ENDS,
    STOPS,
    VOCAB_SIZE,
    check,
    letters,
    named,
    prompts_of,
    reference_answer,
    with_room_for,
)

PROMPTS = prompts_of((60, 1, 7, 19, 8))
# Of 3, no and 1 token, of more than a chunk of a pool (8), and of more than a block of a GPU's cache (32).
PREFIXES = [[7, 21, 40], [], [12], [30, 30, 11, 5, 5, 9, 30, 30, 17], [4 + place * place % 13 for place in range(35)]]
LONG = {"max_length": 50, "min_length": 40}
OPTIONS = [
    {},
    {**CNN, **LONG},
    {**BLENDERBOT, **LONG},
    LONG,
    {"max_length": 37, "forced_eos_token_id": [9, 5]},
    *[
        {"max_new_tokens": 12, "num_beams": num_beams, **more}
        for num_beams in (1, 4)
        for more in (
            {},
            {"min_new_tokens": 9},
            {"min_new_tokens": 9, "eos_token_id": MANY_ENDS},
            {"no_repeat_ngram_size": 1},
            {"no_repeat_ngram_size": 2, "repetition_penalty": 1.7},
            {"repetition_penalty": 0.8, "encoder_repetition_penalty": 1.5},
            {"encoder_no_repeat_ngram_size": 2},
            {"forced_bos_token_id": 7, "forced_eos_token_id": 2},
            {"forced_bos_token_id": 7, "begin_suppress_tokens": EVEN},
            {"suppress_tokens": [2, 9, 40], "begin_suppress_tokens": EVEN},
            {"sequence_bias": BIASES},
            {"bad_words_ids": BAD_WORDS},
            {"exponential_decay_length_penalty": (4, 1.3)},
            {"stop_strings": STOPS},
            {"eos_token_id": ENDS},
        )
    ],
    {"max_new_tokens": 12, "do_sample": True, "top_k": 1},
    {"max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "early_stopping": True},
    {"max_new_tokens": 12, "num_beams": 4, "early_stopping": "never", "length_penalty": 0.5, "eos_token_id": ENDS},
]


@pytest.fixture(scope="module")
def wanted(pair):
    """wanted(family, options) -> each prompt's params, tokens and scores; computed once."""
    known = {}

    def get(family, options):
        key = (family, named(options))
        if key not in known:
            reference, _ = pair(family, VOCAB_SIZE)
            known[key] = [
                (GenerationParams(**own), *reference_answer(reference, prompt, own, prefix))
                for prompt, prefix in zip(PROMPTS, PREFIXES, strict=True)
                for own in [with_room_for(prompt, options, reference)]
            ]
        return known[key]

    return get


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_a_prefix_is_the_references(pair, wanted, family, options):
    """Each alone, and all in one batch that has room for three of the five at a time."""
    _, model = pair(family, VOCAB_SIZE)
    rows = wanted(family, options)
    engine = Engine(model, max_slots=3 * options.get("num_beams", 1), stop_text=letters)
    together = engine.generate(PROMPTS, [row[0] for row in rows], answer_prefixes=PREFIXES)
    for prompt, prefix, (params, tokens, scores), answer in zip(PROMPTS, PREFIXES, rows, together, strict=True):
        (alone,) = Engine(model, stop_text=letters).generate([prompt], params, answer_prefixes=[prefix])
        check(answer, tokens, scores)
        check(alone, tokens, scores)
        assert all(len(one.log_probs) == len(one.token_ids) for one in answer.outputs), "of new tokens alone"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "backend", "options"),
    [
        *((family, PooledBackend, OPTIONS) for family in FAMILIES),
        *((family, PagedBackend, OPTIONS[::4]) for family in ("bart", "blenderbot")),  # slow on a CPU
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} kinds" if isinstance(value, list) else None,
)
def test_prefixes_of_all_lengths_share_one_continuous_batch(pair, wanted, family, backend, options, monkeypatch):
    """Up to 190 requests: a unit that begins with tokens takes the place of one that left, and the other way round."""
    monkeypatch.setattr(runner, "backend_of", backend)
    _, model = pair(family, VOCAB_SIZE)
    rows = [row for own in options for row in wanted(family, own)]
    engine = Engine(model, max_slots=24, max_batch_tokens=150, stop_text=letters)
    prompts, prefixes = PROMPTS * len(options), PREFIXES * len(options)
    answers = engine.generate(prompts, [row[0] for row in rows], answer_prefixes=prefixes)
    for (_, tokens, scores), answer in zip(rows, answers, strict=True):
        check(answer, tokens, scores)


@pytest.mark.parametrize("family", ["bart", "blenderbot", "bloom"])
def test_samples_behind_a_prefix_do_not_depend_on_the_backend_or_the_batch(pair, family, monkeypatch):
    _, model = pair(family)
    params = GenerationParams(max_new_tokens=20, do_sample=True, top_k=20, num_return_sequences=5)
    found = []
    for backend in (PooledBackend, PagedBackend):
        monkeypatch.setattr(runner, "backend_of", backend)
        together = Engine(model, max_slots=11).generate(PROMPTS, params, seed=5, answer_prefixes=PREFIXES)
        found.append([[one.token_ids for one in answer.outputs] for answer in together])
        engine = Engine(model)
        (alone,) = engine.generate(PROMPTS[:1], params, seed=5, answer_prefixes=PREFIXES[:1])
        assert [one.token_ids for one in alone.outputs] == found[-1][0]
    assert found[0] == found[1]
    assert len(set(map(tuple, found[0][4]))) > 1


def test_a_prefix_counts_as_prompt_and_not_as_answer(pair):
    _, model = pair("bart")
    engine = Engine(model)
    params = GenerationParams(max_new_tokens=4, min_new_tokens=4)
    (answer,) = engine.generate([[5, 6, 7]], params, answer_prefixes=[[9, 8]])
    assert (answer.num_prompt_tokens, len(answer.outputs[0].token_ids)) == (5, 4)
    assert (engine.stats.num_prompt_tokens, engine.stats.num_output_tokens) == (5, 4)


def test_each_sequence_of_a_decoder_behind_an_encoder_reserves_room_for_its_prefix():
    params = GenerationParams(max_new_tokens=4, num_beams=3, decoder_start_token_id=2)
    assert Request(0, [5] * 10, params, answer_prefix=(7, 7)).max_cached_tokens == 10 + 3 * (2 + 4)
    alone = Request(0, [5] * 10, params, is_encoder_decoder=False, answer_prefix=(7, 7))
    assert alone.max_cached_tokens == 12 + 3 * 4


@pytest.mark.parametrize(
    ("family", "prefix", "options", "message"),
    [
        ("bart", [5, 211], {}, "The answer's prefix holds ids from 5 to 211; the model's vocabulary is 0 to 210"),
        ("bart", [-1], {}, "The answer's prefix holds ids from -1 to -1"),
        ("bart", [5] * 96, {}, "prefix has 96 tokens and leaves no room for an answer: the decoder has 96 positions"),
        (
            "bart",
            [5] * 9,
            {"max_length": 10},
            r"max_length = 10 leaves no room after the 10 tokens \(9 of them the answer's prefix\) that the decoder",
        ),
        ("bloom", [5] * 9, {"max_length": 12}, r"no room after the 12 tokens \(9 of them the answer's prefix\) that"),
        ("bart_causal", [5] * 94, {}, r"The prompt has 97 tokens \(94 of them the answer's prefix\); the model has 96"),
    ],
)
def test_a_prefix_that_cannot_be_is_refused_with_words(pair, family, prefix, options, message):
    engine = Engine(pair(family)[1])
    with pytest.raises(RequestError, match=message):
        engine.add(0, [5, 6, 7], GenerationParams(**options), answer_prefix=prefix)
    assert engine.num_unfinished == 0


def test_the_last_position_is_room_for_one_token(pair):
    _, model = pair("bart")
    (answer,) = Engine(model).generate([[5, 6]], GenerationParams(max_new_tokens=9), answer_prefixes=[[5] * 95])
    assert (len(answer.outputs[0].token_ids), answer.outputs[0].finish_reason) in {(1, "length"), (1, "eos")}


def test_each_prompt_needs_its_own_prefix(pair):
    with pytest.raises(RequestError, match="2 prompts came with 1 answer_prefixes"):
        Engine(pair("bart")[1]).generate([[5], [6]], answer_prefixes=[[7]])


def test_a_prefix_whose_keys_are_not_finite_is_an_error_of_its_request_alone(pair, monkeypatch):
    _, model = pair("bart")
    params = GenerationParams(max_new_tokens=8)
    well = Engine(model).generate([[5, 6], [7]], params, answer_prefixes=[[9, 10], []])
    decode = type(model).decode

    def broken(self, input_ids_N, positions_N, context):
        hidden_ND = decode(self, input_ids_N, positions_N, context)
        for layer in getattr(context, "keys_values", ()):
            layer[1][(input_ids_N == 33)[: len(layer[1])]] = torch.nan
        return hidden_ND

    monkeypatch.setattr(type(model), "decode", broken)
    found = Engine(model).generate([[5, 6], [8], [7]], params, answer_prefixes=[[9, 10], [33, 4], []])
    assert [answer.error and answer.error.kind for answer in found] == [None, "not_finite", None]
    assert [found[0].outputs, found[2].outputs] == [answer.outputs for answer in well]
