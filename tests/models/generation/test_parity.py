"""Tokens and scores equal transformers' generate in float32: each prompt alone there, all in one continuous batch here.

Scores may differ by 1e-4, or 1e-5 of their size where it is above 10: they are sums of up to 30 log-probabilities, each
from float32 logits near 10 that agree to 2e-5.
"""

import pytest
import torch

from models import Engine, GenerationParams
from models.errors import ParamsError

CNN = {  # bart-large-cnn's habits, shortened
    "num_beams": 4,
    "max_length": 30,
    "min_length": 10,
    "length_penalty": 2.0,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}
BLENDERBOT = {
    "num_beams": 10,
    "max_length": 24,
    "min_length": 8,
    "length_penalty": 0.65,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3,
    "forced_eos_token_id": 2,
}
OPTIONS = [
    {"max_new_tokens": 20},
    {"max_length": 12},
    {},
    {"max_new_tokens": 20, "min_length": 9},
    {"max_new_tokens": 20, "min_new_tokens": 9},
    {"max_new_tokens": 20, "no_repeat_ngram_size": 1},
    {"max_new_tokens": 20, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 20, "repetition_penalty": 1.7},
    {"max_new_tokens": 20, "encoder_repetition_penalty": 1.5},
    {"max_new_tokens": 20, "encoder_no_repeat_ngram_size": 2},
    {"max_new_tokens": 12, "forced_bos_token_id": 7, "forced_eos_token_id": 2},
    {"max_new_tokens": 12, "suppress_tokens": [2, 9, 40]},
    {"max_new_tokens": 12, "begin_suppress_tokens": list(range(0, 200, 2))},
    {"max_new_tokens": 12, "bad_words_ids": [[2], [11], [30, 31], [60, 61, 62]]},
    {"max_new_tokens": 20, "exponential_decay_length_penalty": (4, 1.3)},
    {"max_new_tokens": 20, "eos_token_id": [2, 17, 90]},
    *[
        {"max_new_tokens": 16, "num_beams": num_beams, **more}
        for num_beams in (2, 4, 10)
        for more in (
            {"num_return_sequences": num_beams},
            {"early_stopping": True, "length_penalty": 2.0},
            {"early_stopping": "never", "length_penalty": 0.5},
            {"early_stopping": "never", "length_penalty": -0.5},
            {"no_repeat_ngram_size": 2, "min_length": 7},
            {"repetition_penalty": 1.4, "encoder_repetition_penalty": 1.2},
        )
    ],
    CNN,
    BLENDERBOT,
]


def prompts_of(count=8, longest=40):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(4, 211, (length,), generator=generator).tolist() for length in lengths]


def reference_answer(model, prompt, options):
    """Token ids (new ones, end token included) and scores of transformers, one prompt at a time."""
    settings = {"return_dict_in_generate": True, "output_scores": True, **options}
    if options.get("encoder_repetition_penalty"):
        settings["encoder_repetition_penalty"] = float(options["encoder_repetition_penalty"])
    with torch.no_grad():
        answer = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), **settings
        )
    num_start = 1 if model.config.is_encoder_decoder else len(prompt)
    ends = options.get("eos_token_id", [2])
    sequences = []
    for tokens in answer.sequences[:, num_start:].tolist():
        stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
        sequences.append(tokens[: stop + 1])
    if options.get("num_beams", 1) > 1:
        return sequences, answer.sequences_scores.tolist()
    chosen = model.compute_transition_scores(answer.sequences, answer.scores, normalize_logits=True)
    return sequences, chosen.sum(1).tolist()


def with_room_for(prompt, options, model):
    """The same options for a decoder-only model, whose prompt counts in max_length and min_length."""
    changed = dict(options)
    for name in ("max_length", "min_length"):
        if name in options and not model.config.is_encoder_decoder:
            changed[name] = options[name] + len(prompt) - 1
    return changed


def check(reference, model, prompts, options):
    each = [with_room_for(prompt, options, reference) for prompt in prompts]
    engine = Engine(model, max_slots=3 * options.get("num_beams", 1))
    answers = engine.generate(prompts, [GenerationParams(**own) for own in each])
    for prompt, own, answer in zip(prompts, each, answers, strict=True):
        tokens, scores = reference_answer(reference, prompt, own)
        assert [one.token_ids for one in answer.outputs] == tokens
        assert [one.score for one in answer.outputs] == pytest.approx(scores, abs=1e-4, rel=1e-5)


def named(options):
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "none"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_tokens_and_scores_of_bart_are_the_references(pair, options):
    check(*pair("bart"), prompts_of(), options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_tokens_and_scores_of_bloom_are_the_references(pair, options):
    check(*pair("bloom"), prompts_of(), options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"max_new_tokens": 20}, {"max_new_tokens": 20, "num_beams": 3}, CNN, BLENDERBOT])
@pytest.mark.parametrize("family", ["blenderbot", "blenderbot_small", "bart_causal"])
def test_tokens_and_scores_of_the_other_families_are_the_references(pair, family, options):
    check(*pair(family), prompts_of(), options)


@pytest.mark.filterwarnings("ignore")
def test_log_probabilities_of_beams_are_the_references_transition_scores(pair):
    reference, model = pair("bart")
    options = {"max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 3, "repetition_penalty": 1.3}
    for prompt in prompts_of(4):
        with torch.no_grad():
            wanted = reference.generate(
                torch.tensor([prompt]), return_dict_in_generate=True, output_scores=True, output_logits=True, **options
            )
        transitions = reference.compute_transition_scores(wanted.sequences, wanted.scores, wanted.beam_indices)
        outputs = Engine(model).generate([prompt], GenerationParams(**options))[0].outputs
        for one, scores in zip(outputs, transitions, strict=True):
            assert one.log_probs == pytest.approx(scores[: len(one.token_ids)].tolist(), abs=1e-4)


def letters(token_ids):
    """Token n is n's letter modulo 26, 1 + n // 26 times: a text in which stop strings overlap tokens."""
    return "".join(chr(97 + n % 26) * (1 + n // 26) for n in token_ids)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_beams", [1, 3])
def test_stop_strings_end_where_the_reference_ends(pair, num_beams):
    reference, model = pair("bart")
    options = {"max_new_tokens": 20, "num_beams": num_beams}
    reasons = []
    for prompt in prompts_of():
        free = Engine(model).generate([prompt], GenerationParams(**options))[0].outputs[0].token_ids
        stops = [letters(free[3:5])[1:] or "q", "zzz"]

        def ends(input_ids, *_, stops=stops):
            return torch.tensor([any(stop in letters(row[1:].tolist()) for stop in stops) for row in input_ids])

        with torch.no_grad():
            wanted = reference.generate(torch.tensor([prompt]), stopping_criteria=[ends], **options)[0, 1:].tolist()
        engine = Engine(model, stop_text=letters)
        (answer,) = engine.generate([prompt], GenerationParams(stop_strings=stops, **options))
        one = answer.outputs[0]
        assert one.token_ids == wanted[: len(one.token_ids)]
        assert set(wanted[len(one.token_ids) :]) <= {1, 2}, "the reference went on"
        assert (one.finish_reason == "stop") == any(stop in letters(one.token_ids) for stop in stops)
        reasons.append(one.finish_reason)
    assert reasons.count("stop") > 3


def test_stop_strings_without_text_are_refused(pair):
    with pytest.raises(ParamsError, match="stop_text="):
        Engine(pair("bart")[1]).generate([[5]], GenerationParams(stop_strings="x"))
