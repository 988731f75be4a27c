"""Sampling: what may be drawn is what transformers' warpers leave, and a draw belongs to a seed, not to a batch."""

from collections import Counter

import pytest
import torch
from transformers.generation import logits_process as reference

from batchloom.models import Engine, GenerationParams
from batchloom.models.generation.search.randomness import gumbels, sample_key
from batchloom.models.generation.search.warpers import warp

WARPERS = {
    "temperature": lambda value, _: reference.TemperatureLogitsWarper(value),
    "top_h": lambda value, _: reference.TopHLogitsWarper(value),
    **{
        name: lambda value, num_kept, kind=kind: kind(value, min_tokens_to_keep=num_kept)
        for name, kind in {
            "top_k": reference.TopKLogitsWarper,
            "top_p": reference.TopPLogitsWarper,
            "min_p": reference.MinPLogitsWarper,
            "typical_p": reference.TypicalLogitsWarper,
            "epsilon_cutoff": reference.EpsilonLogitsWarper,
            "eta_cutoff": reference.EtaLogitsWarper,
        }.items()
    },
}
PROMPTS = [[5, 9, 17, 30, 2], [44], list(range(10, 60)), [7, 7, 7], [100, 101, 102, 9, 8]]


@pytest.mark.parametrize("vocab_size", [211, 5000])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 2},
        {"top_k": 7},
        {"temperature": 0.5, "top_k": 50},
        {"top_k": 0, "top_h": 0.1},
        {"top_k": 0, "top_h": 0.6},
        {"temperature": 1.5, "top_h": 0.9, "top_k": 20, "top_p": 0.8},
        {"top_k": 0, "top_p": 0.01},
        {"top_k": 0, "top_p": 0.6},
        {"top_k": 0, "top_p": 0.99},
        {"temperature": 2.0, "top_k": 40, "top_p": 0.9},
        {"top_k": 0, "min_p": 0.1},
        {"top_k": 0, "typical_p": 0.01},
        {"top_k": 0, "typical_p": 0.4},
        {"top_k": 30, "typical_p": 0.9, "epsilon_cutoff": 0.01},
        {"top_k": 0, "epsilon_cutoff": 0.003},
        {"top_k": 0, "eta_cutoff": 0.01},
        {"temperature": 0.8, "top_k": 60, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.8, "eta_cutoff": 0.002},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_kept", [1, 3])
def test_the_distribution_drawn_from_is_the_references(options, vocab_size, num_kept):
    logits_RV = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(0)) * 3
    wanted_RV = logits_RV.clone()
    for name, make in WARPERS.items():
        if options.get(name):
            wanted_RV = make(options[name], num_kept)(None, wanted_RV)
    distribution = warp(logits_RV, GenerationParams(do_sample=True, **options).resolve({}), num_kept=num_kept)
    got_RV = torch.zeros_like(logits_RV).scatter_(1, distribution.token_RC, distribution.log_prob_RC.exp())
    torch.testing.assert_close(got_RV, wanted_RV.softmax(-1), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("vocab_size", [6, 1300])
def test_frequencies_of_draws_are_the_probabilities(vocab_size):
    """20 000 draws from 6 likely tokens: a frequency's standard deviation is 0.0035 at most; five are let pass."""
    logits_V = torch.full((vocab_size,), -6.0)
    logits_V[torch.arange(6) * (vocab_size // 6)] = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -3.0])
    logits_RV = logits_V.expand(20_000, -1)
    distribution = warp(logits_RV, GenerationParams(do_sample=True, top_k=0).resolve({}))
    keys_R = torch.tensor([sample_key(seed, 0) for seed in range(20_000)])
    token_R, log_prob_R = distribution.draw(keys_R, torch.zeros_like(keys_R))
    probability_V = logits_RV[0].softmax(-1)
    torch.testing.assert_close(token_R.bincount(minlength=vocab_size) / 20_000, probability_V, atol=0.018, rtol=0)
    torch.testing.assert_close(log_prob_R.exp(), probability_V[token_R])


def test_random_numbers_differ_by_seed_sample_step_and_token_and_are_gumbels():
    """100 000 of them: means of exp(-exp(-x)), which is uniform, and of x, Euler's constant; within five deviations."""
    keys = torch.tensor([sample_key(seed, sample) for seed in (0, 1, -1, 2**62) for sample in range(50)])
    choices = torch.arange(10).expand(200, -1)
    numbers = torch.cat([gumbels(keys, torch.full((200,), step), choices) for step in range(50)])
    assert len(set(numbers.flatten().tolist())) == 100_000
    uniform = (-(-numbers).exp()).exp()
    assert 0 < float(uniform.min()) < 1e-4
    assert 1 - 1e-4 < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 5 * 12**-0.5 * 1e-5**0.5
    assert abs(float(numbers.mean()) - 0.5772) < 5 * 1.2825 * 1e-5**0.5
    assert abs(float(torch.corrcoef(numbers.T).triu(1).abs().max())) < 0.05


def test_rounding_elsewhere_in_a_row_moves_no_sample():
    """Bug: along a sum of probabilities the noise of 50 000 tokens added up, and a row alone got other tokens."""
    generator = torch.Generator().manual_seed(0)
    exact_RV = torch.randn(64, 20_000, generator=generator)
    rounded_RV = exact_RV + torch.randn(64, 20_000, generator=generator) * 1e-4
    keys_R = torch.tensor([sample_key(seed, 0) for seed in range(64)])
    params = GenerationParams(do_sample=True, top_k=0).resolve({})
    one_R, other_R = (warp(logits_RV, params).draw(keys_R, keys_R * 0)[0] for logits_RV in (exact_RV, rounded_RV))
    assert torch.equal(one_R, other_R)


@pytest.mark.parametrize("family", ["bart", "bloom"])
def test_samples_depend_on_their_seed_and_number_and_on_nothing_else(pair, family):
    _, model = pair(family)
    ends = [2, *range(50, 70)]  # many, so that rows leave at different times
    params = GenerationParams(do_sample=True, num_return_sequences=3, max_new_tokens=12, top_p=0.9, eos_token_id=ends)

    def answers(order, max_slots):
        engine, found = Engine(model, max_slots=max_slots), {}
        for index in order:
            engine.add(index, PROMPTS[index], params, seed=100 + index)
        while engine.num_unfinished:
            found |= {one.request_id: [each.token_ids for each in one.outputs] for one in engine.step()}
        return found

    wanted = answers(range(5), 64)
    assert wanted == answers([3, 1, 4, 0, 2], 3) == answers([4, 3, 2, 1, 0], 7)
    assert len({tuple(tokens) for tokens in wanted[0]}) == 3
    assert len({len(tokens) for sample in wanted.values() for tokens in sample}) > 1, (
        "rows should leave at different times"
    )
    fewer = GenerationParams(do_sample=True, max_new_tokens=12, top_p=0.9, eos_token_id=ends)
    engine = Engine(model)
    engine.add(0, PROMPTS[0], fewer, seed=100)
    while engine.num_unfinished:
        found = engine.step()
    assert found[0].outputs[0].token_ids == wanted[0][0]


def test_another_seed_gives_another_sample(pair):
    _, model = pair("bart")
    params = GenerationParams(do_sample=True, max_new_tokens=12, min_new_tokens=12)
    samples = {
        tuple(Engine(model).generate([PROMPTS[0]], params, seed=seed)[0].outputs[0].token_ids) for seed in range(5)
    }
    assert len(samples) == 5


def test_the_likeliest_token_is_drawn_where_no_other_is_left(pair):
    _, model = pair("bart")
    sampled = Engine(model).generate(PROMPTS, GenerationParams(do_sample=True, top_k=1, max_new_tokens=9))
    greedy = Engine(model).generate(PROMPTS, GenerationParams(max_new_tokens=9))
    assert [one.outputs[0].token_ids for one in sampled] == [one.outputs[0].token_ids for one in greedy]
    assert all(log_prob == 0 for one in sampled for log_prob in one.outputs[0].log_probs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "top_k": 3, "temperature": 4.0},
        {"num_beams": 2, "top_k": 0, "temperature": 2.0},
        {"num_beams": 3, "top_k": 0, "top_p": 0.3, "temperature": 3.0, "renormalize_logits": True},
        {"num_beams": 2, "top_k": 5, "temperature": 5.0, "eos_token_id": [2, *range(20, 43)], "early_stopping": True},
    ],
    ids=str,
)
def test_sampling_inside_beam_search_answers_as_often_as_the_reference(pair, options):
    """2000 answers of each: how often one comes differs by five standard deviations, the root of the sum, at most.

    Scores of equal answers are equal: the search adds up the same probabilities.
    """
    reference, model = pair("bart", 43)
    num, prompt = 2000, [5, 9, 17, 30]
    settings = {"max_new_tokens": 3, "do_sample": True, **options}
    torch.manual_seed(0)
    with torch.no_grad():
        found = reference.generate(
            torch.tensor([prompt] * num), return_dict_in_generate=True, output_scores=True, **settings
        )
    ends = settings.get("eos_token_id", [2])
    wanted = []
    for tokens in found.sequences[:, 1:].tolist():
        length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
        wanted.append(tuple(tokens[:length]))
    scores = dict(zip(wanted, found.sequences_scores.tolist(), strict=True))
    outputs = [answer.outputs[0] for answer in Engine(model).generate([prompt] * num, GenerationParams(**settings))]
    got = [tuple(output.token_ids) for output in outputs]
    frequencies = [Counter(answers) for answers in (got, wanted)]
    for answer in set(got) | set(wanted):
        ours, theirs = (frequency[answer] for frequency in frequencies)
        assert abs(ours - theirs) < 5 * (ours + theirs) ** 0.5 + 1
    for output in outputs:
        assert output.score == pytest.approx(scores.get(tuple(output.token_ids), output.score), abs=1e-4)
    assert len(set(wanted)) > 8, "nothing was drawn"
    assert len(set(got) & set(wanted)) > 8


def test_what_top_p_draws_for_a_row_does_not_depend_on_rows_that_need_more_tokens():
    """Guards a bug: beside a row that is nearly flat, all rows were drawn in another way."""
    generator = torch.Generator().manual_seed(1)
    params = GenerationParams(do_sample=True, top_k=0, top_p=0.9).resolve({})
    peaked_RV = torch.randn(8, 5000, generator=generator) * 2.3  # some 800 tokens hold nine tenths
    flat_RV = torch.randn(2, 5000, generator=generator) * 0.01
    alone, beside = warp(peaked_RV, params), warp(torch.cat((peaked_RV, flat_RV)), params)
    flat = warp(flat_RV, params)
    assert (alone.token_RC.shape[1], beside.token_RC.shape[1]) == (1024, 5000)
    for step in range(200):
        key_R, step_R = torch.arange(10) * 7919, torch.full((10,), step)
        token_R, log_prob_R = beside.draw(key_R, step_R)
        alone_token_R, alone_log_prob_R = alone.draw(key_R[:8], step_R[:8])
        flat_token_R, flat_log_prob_R = flat.draw(key_R[8:], step_R[8:])
        assert token_R.tolist() == [*alone_token_R.tolist(), *flat_token_R.tolist()]
        assert torch.equal(log_prob_R, torch.cat((alone_log_prob_R, flat_log_prob_R)))
