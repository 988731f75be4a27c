"""A request for which the model gives NaN or infinity has an error; the requests beside it have the same answers."""

import math
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from batchloom.models import Engine, GenerationParams, load_model
from batchloom.models.generation import runner
from batchloom.models.generation.memory.cpu.backend import PooledBackend
from batchloom.models.generation.memory.gpu.backend import PagedBackend
from tests.models.generation.conftest import make_checkpoint

BAD = 77  # the token whose embedding is not finite
WELL = [[(7 * row + 3 * place) % 60 + 5 for place in range(4 + 9 * row)] for row in range(4)]
SEARCHES = {
    "greedy": {},
    "processed": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "bad_words_ids": [[4, 5], [8]]},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "top_k": {"do_sample": True, "top_k": 20, "min_p": 0.01},
    "top_p": {"do_sample": True, "top_p": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams, never early": {"num_beams": 4, "early_stopping": "never", "length_penalty": 2.0},
    "beam samples": {"num_beams": 2, "do_sample": True, "renormalize_logits": True},
}


@contextmanager
def holding(value, *places):
    """These (tensor, index) hold another value meanwhile."""
    saved = [(tensor, index, tensor[index].clone()) for tensor, index in places]
    with torch.no_grad():
        for tensor, index in places:
            tensor[index] = value
        yield
        for tensor, index, old in saved:
            tensor[index] = old


def embeddings(model, token, *names):
    return [(weight, token) for name, weight in model.named_parameters() if name.endswith(names)]


def answer(model, prompts, params, **settings):
    return Engine(model, **settings).generate(prompts, params, seed=5)


@pytest.fixture(params=[PooledBackend, PagedBackend], ids=["pools", "blocks"])
def backend(request, monkeypatch):
    monkeypatch.setattr(runner, "backend_of", request.param)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("family", ["bart", "bloom"])
def test_a_row_that_is_not_finite_leaves_its_neighbours_their_answers(pair, family, search):
    """There are few slots, so that others take its places in the KV cache, whose masked entries were NaN."""
    _, model = pair(family)
    params = GenerationParams(max_new_tokens=12, min_new_tokens=4, suppress_tokens=(BAD,), **search)
    ill = [[5, 6, BAD, 7, *range(8, 40)], [BAD, 6, 7], [8, BAD, 9, 10, 11]]
    prompts = [ill[0], *WELL, ill[1], *WELL[::-1], ill[2]]
    healthy = [WELL[0], *WELL, WELL[0], *WELL[::-1], WELL[0]]
    expected = answer(model, healthy, params, max_slots=10)
    with holding(math.nan, *embeddings(model, BAD, "encoder.embed_tokens.weight", "word_embeddings.weight")):
        found = answer(model, prompts, params, max_slots=10)
    for prompt, one, other in zip(prompts, found, expected, strict=True):
        if BAD in prompt:
            assert (one.error.kind, one.outputs) == ("not_finite", [])
            assert one.error.message.startswith(
                "The logits of new token 1 are not finite (NaN or infinity), in float32."
            )
        else:
            assert one.error is None
            assert [own.token_ids for own in one.outputs] == [own.token_ids for own in other.outputs]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("family", ["bart", "bloom"])
def test_a_row_may_stop_being_finite_later(pair, family):
    """It reads a token that it chose itself, and leaves several entries; its successor overwrites one a step."""
    _, model = pair(family)
    prompts = [[(5 * row + 3 * place) % 60 + 5 for place in range(3 + row % 7)] for row in range(24)]
    params = GenerationParams(max_new_tokens=24, min_new_tokens=10)
    healthy = answer(model, prompts, params, max_slots=6)
    read = [set(output.outputs[0].token_ids[:-1]) for output in healthy]
    inputs = {token for prompt in prompts for token in prompt}
    spread = {token: sum(token in own for own in read) for token in set().union(*read) - inputs}
    token, num_ill = min(spread.items(), key=lambda both: abs(both[1] - 8))
    assert 2 <= num_ill <= 16
    with holding(math.nan, *embeddings(model, token, "decoder.embed_tokens.weight", "word_embeddings.weight")):
        found = answer(model, prompts, params, max_slots=6)
    for one, other, own in zip(found, healthy, read, strict=True):
        assert (one.error is not None) == (token in own)
        assert one.error is not None or one.outputs[0].token_ids == other.outputs[0].token_ids
    first = {one.error.message for one in found if one.error is not None}
    assert not any("new token 1 " in message for message in first)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_logit_that_is_not_finite_is_enough_and_ends_the_row(pair, search, value):
    _, model = pair("bart")
    engine = Engine(model)
    with holding(value, (model.final_logits_bias, (0, 9))):
        found = engine.generate(WELL, GenerationParams(max_new_tokens=12, **search))
    assert [output.error.kind for output in found] == ["not_finite"] * len(WELL)
    assert engine.stats.num_steps == 1


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_bans_and_forced_tokens_are_no_errors(pair, search):
    """All tokens but three are banned, by options and by the model's own bias; the first and the last are forced."""
    _, model = pair("bart")
    banned = tuple(token for token in range(211) if token not in (2, 17, 33))
    options = {**search, "suppress_tokens": banned, "forced_bos_token_id": 17, "forced_eos_token_id": 2}
    with holding(-math.inf, (model.final_logits_bias, (0, slice(40, 80)))):
        found = answer(model, WELL, GenerationParams(max_new_tokens=6, **options))
    assert [output.error for output in found] == [None] * len(WELL)


def test_greedy_search_with_every_token_banned_scores_minus_infinity(pair):
    """As in transformers it takes the first token. The sum of log-probabilities was NaN."""
    _, model = pair("bart")
    (found,) = answer(model, [[5, 6]], GenerationParams(max_new_tokens=3, suppress_tokens=tuple(range(211))))
    assert (found.error, found.outputs[0].token_ids, found.outputs[0].score) == (None, [0, 0, 0], -math.inf)


def test_sampling_with_every_token_banned_says_so(pair):
    _, model = pair("bart")
    params = GenerationParams(max_new_tokens=3, suppress_tokens=tuple(range(211)), do_sample=True)
    (found,) = answer(model, [[5, 6]], params)
    assert "Options ban every token at new token 1" in found.error.message


@pytest.mark.parametrize(
    ("family", "changes"),
    [("bart", {"encoder_layers": 1, "decoder_layers": 1, "activation_function": "relu"}), ("bloom", {"n_layer": 1})],
)
def test_a_nan_in_any_weight_is_found(tmp_path, family, changes):
    """torch's attention gave zeros for few keys of NaN, and oneDNN's fused relu made NaN 0: answers looked sound."""
    make_checkpoint(tmp_path, family, **changes)
    plain, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    unfound = []
    for name, weight in plain.items():
        spoilt = weight.clone()
        spoilt[min(4, len(weight) - 1)] = (
            math.nan
        )  # of an embedding, the row of the prompt's first token or third position
        if name == "model.decoder.embed_tokens.weight":
            spoilt[2] = math.nan  # the start token
        save_file({**plain, name: spoilt}, file, metadata={"format": "pt"})
        (found,) = answer(load_model(str(tmp_path)), [[4, 5, 6]], GenerationParams(max_new_tokens=6))
        if found.error is None:
            unfound.append(name)
    # Of the shared matrix there are copies, which are read.
    assert set(unfound) <= {"model.shared.weight"}


@pytest.mark.parametrize(("dtype", "advice"), [("float16", "bfloat16 or float32"), ("bfloat16", "in float32")])
def test_the_message_says_which_dtype_to_try(tmp_path, dtype, advice):
    """Weights are finite, and products of them are not in float16; in bfloat16 one is infinite."""
    make_checkpoint(tmp_path, "bloom", n_layer=1)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = "transformer.h.0.mlp.dense_4h_to_h.bias"
    weights[name].fill_(60_000.0 if dtype == "float16" else math.inf)
    weights["transformer.h.0.self_attention.dense.bias"].fill_(60_000.0)
    save_file(weights, file, metadata={"format": "pt"})
    params = GenerationParams(max_new_tokens=4)
    (found,) = answer(load_model(str(tmp_path), dtype=dtype), [[4, 5, 6]], params)
    assert f"in {dtype}. " in found.error.message
    assert advice in found.error.message
    if dtype == "float16":
        assert answer(load_model(str(tmp_path), dtype="float32"), [[4, 5, 6]], params)[0].error is None
