"""Tokens and scores equal transformers' generate in float32, for all families: the table that the run prints.

The reference answers each prompt alone. Ours answers it alone, beside the others of its kind, and beside everything
else in the table at once. Scores may differ by 1e-4, or 1e-5 of their size where it is above 10: they are sums of up to
30 log-probabilities, each from float32 logits near 10 that agree to 2e-5.
"""

import random

import pytest
import torch

from batchloom.models import Engine, GenerationParams
from batchloom.models.errors import ParamsError

FAMILIES = ("bart", "mbart", "blenderbot", "blenderbot_small", "bloom")
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
# Few tokens, and in the lists below those that these checkpoints like, so that each option meets its case.
VOCAB_SIZE = 43
ENDS = [2, 13, 19, 33]
MANY_ENDS = [2, *range(12, 42, 3)]
EVEN = list(range(4, VOCAB_SIZE, 2))
BAD_WORDS = [[2], [11], *([token, token] for token in range(13, 43, 2)), [20, 20, 20], [7, 40]]
BIASES = [
    [[2], -30.0],
    *([[token], 3.0] for token in range(4, 43, 3)),
    *([[token, token], -4.5] for token in range(13, 43)),
]
STOPS = ["q", "uu", "nn", "ooo"]
OPTIONS = [
    {},
    CNN,
    BLENDERBOT,
    {"max_length": 12},
    {"max_length": 30, "min_length": 9},
    # Each processor under greedy search, then pairs of them.
    *[
        {"max_new_tokens": 14, **more}
        for more in (
            {},
            {"min_new_tokens": 9},
            {"no_repeat_ngram_size": 1},
            {"no_repeat_ngram_size": 2},
            {"no_repeat_ngram_size": 3},
            {"repetition_penalty": 1.7},
            {"repetition_penalty": 0.8},
            {"encoder_repetition_penalty": 1.5},
            {"encoder_no_repeat_ngram_size": 1},
            {"encoder_no_repeat_ngram_size": 2},
            {"forced_bos_token_id": 7},
            {"forced_eos_token_id": 2},
            {"forced_eos_token_id": [9, 5]},
            {"suppress_tokens": [2, 9, 40]},
            {"sequence_bias": BIASES},
            {"begin_suppress_tokens": EVEN},
            {"bad_words_ids": BAD_WORDS},
            {"exponential_decay_length_penalty": (4, 1.3)},
            {"eos_token_id": ENDS},
            {"eos_token_id": MANY_ENDS},
            {"stop_strings": STOPS},
            {"do_sample": True, "top_k": 1},
            {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
            {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3},
            {"no_repeat_ngram_size": 1, "bad_words_ids": BAD_WORDS},
            {"min_new_tokens": 9, "eos_token_id": MANY_ENDS},
            {"min_new_tokens": 6, "exponential_decay_length_penalty": (2, 1.5)},
            {"repetition_penalty": 1.4, "encoder_repetition_penalty": 1.2},
            {"forced_bos_token_id": 7, "forced_eos_token_id": 2},
            {"forced_bos_token_id": 7, "begin_suppress_tokens": EVEN},
            {"suppress_tokens": EVEN, "eos_token_id": MANY_ENDS},
            {"suppress_tokens": EVEN[3:], "stop_strings": STOPS},
            {"repetition_penalty": 1.4, "renormalize_logits": True},
        )
    ],
    *[
        {"max_new_tokens": 12, "num_beams": num_beams, **more}
        for num_beams in (2, 4, 10)
        for more in (
            {"num_return_sequences": num_beams},
            {"early_stopping": True, "length_penalty": 2.0, "eos_token_id": ENDS},
            {"early_stopping": False, "length_penalty": 0.0, "eos_token_id": ENDS},
            {"early_stopping": "never", "length_penalty": 0.5, "eos_token_id": ENDS},
            {"early_stopping": "never", "length_penalty": -0.5, "eos_token_id": ENDS},
            {"no_repeat_ngram_size": 2, "min_length": 7},
            {"repetition_penalty": 1.4, "encoder_repetition_penalty": 1.2},
        )
    ],
    # Each processor under beam search, then pairs of what decides when a search ends.
    *[
        {"max_new_tokens": 12, "num_beams": 4, **more}
        for more in (
            {"min_new_tokens": 9},
            {"encoder_no_repeat_ngram_size": 2},
            {"forced_bos_token_id": 7, "forced_eos_token_id": 2},
            {"suppress_tokens": [2, 9, 40], "begin_suppress_tokens": EVEN},
            {"sequence_bias": BIASES},
            {"bad_words_ids": BAD_WORDS},
            {"exponential_decay_length_penalty": (4, 1.3)},
            {"repetition_penalty": 1.4, "renormalize_logits": True},
            {"stop_strings": STOPS},
            {"eos_token_id": MANY_ENDS, "num_return_sequences": 3},
            {"eos_token_id": MANY_ENDS, "early_stopping": True},
            {"eos_token_id": MANY_ENDS, "early_stopping": "never", "length_penalty": 1.5},
            {"stop_strings": STOPS, "early_stopping": True, "num_return_sequences": 2},
        )
    ],
]


def prompts_of(lengths=(60, 1, 7, 19)):
    """Half of the tokens repeat the one before: n-grams that answers tend to as well."""
    choice = random.Random(3)
    prompts = []
    for length in lengths:
        prompt = [choice.randrange(4, VOCAB_SIZE)]
        while len(prompt) < length:
            prompt.append(prompt[-1] if choice.random() < 0.5 else choice.randrange(4, VOCAB_SIZE))
        prompts.append(prompt)
    return prompts


def letters(token_ids):
    """Token n is n's letter modulo 26, 1 + n // 26 times: a text in which stop strings overlap tokens."""
    return "".join(chr(97 + n % 26) * (1 + n // 26) for n in token_ids)


def reference_answer(model, prompt, options, answer_prefix=()):
    """Token ids (new ones, end token included) and scores of transformers, one prompt at a time."""
    settings = {"return_dict_in_generate": True, "output_scores": True, **options}
    stops = settings.pop("stop_strings", ())
    if not model.config.is_encoder_decoder:
        prompt = [*prompt, *answer_prefix]
    elif answer_prefix:
        settings["decoder_input_ids"] = torch.tensor([[model.generation_config.decoder_start_token_id, *answer_prefix]])
    num_start = 1 + len(answer_prefix) if model.config.is_encoder_decoder else len(prompt)
    ends = options.get("eos_token_id", [2])

    def has_stop(token_ids):
        return any(stop in letters(token_ids) for stop in stops)

    def criterion(input_ids, _):
        return torch.tensor([has_stop(row[num_start:].tolist()) for row in input_ids])

    if stops:
        settings["stopping_criteria"] = [criterion]
    with torch.no_grad():
        answer = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), **settings
        )
    sequences = []
    for tokens in answer.sequences[:, num_start:].tolist():
        places = range(len(tokens))
        stop = next((n for n in places if tokens[n] in ends or has_stop(tokens[: n + 1])), len(tokens) - 1)
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


@pytest.fixture(scope="session")
def wanted(pair):
    """wanted(family, options) -> each prompt, its params, and what the reference answers; computed once."""
    known = {}

    def get(family, options):
        key = (family, named(options))
        if key not in known:
            reference, _ = pair(family, VOCAB_SIZE)
            each = [(prompt, with_room_for(prompt, options, reference)) for prompt in prompts_of()]
            known[key] = [
                (prompt, GenerationParams(**own), *reference_answer(reference, prompt, own)) for prompt, own in each
            ]
        return known[key]

    return get


def check(answer, tokens, scores):
    """The largest difference of scores, where the tokens are equal."""
    assert [one.token_ids for one in answer.outputs] == tokens
    assert [one.score for one in answer.outputs] == pytest.approx(scores, abs=1e-4, rel=1e-5)
    return max(abs(one.score - score) for one, score in zip(answer.outputs, scores, strict=True))


def named(options):
    short = {"bad_words_ids": "...", "sequence_bias": "...", "eos_token_id": f"{len(MANY_ENDS)} ids"}
    return ", ".join(
        f"{name}={short[name] if name in short and len(str(value)) > 20 else value if len(str(value)) < 40 else '...'}"
        for name, value in options.items()
    )


@pytest.mark.filterwarnings("ignore")
def test_the_table_has_sixty_rows_and_each_option_shows_in_the_answers(wanted):
    """A row whose answers equal another's in all families would say nothing about what it adds."""
    rows = {}
    for options in OPTIONS:
        answers = str(
            [
                [(row[2], [round(score, 2) for score in row[3]]) for row in wanted(family, options)]
                for family in FAMILIES
            ]
        )
        rows.setdefault(answers, []).append(named(options))
    assert [names for names in rows.values() if len(names) > 1] == []
    assert len(rows) >= 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_scores_are_the_references(pair, wanted, table, family, options):
    """Each prompt alone, and all in one batch that has room for three of the four at a time."""
    _, model = pair(family, VOCAB_SIZE)
    rows = wanted(family, options)
    prompts, each = [row[0] for row in rows], [row[1] for row in rows]
    together = Engine(model, max_slots=3 * options.get("num_beams", 1), stop_text=letters).generate(prompts, each)
    differences = []
    for (prompt, params, tokens, scores), answer in zip(rows, together, strict=True):
        (alone,) = Engine(model, stop_text=letters).generate([prompt], params)
        differences += [check(answer, tokens, scores), check(alone, tokens, scores)]
    table.append((named(options), family, max(differences)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_table_in_one_continuous_batch_is_the_reference(pair, wanted, family):
    """Every row of the table at once: 300 requests of 70 kinds share steps, and places that others left."""
    _, model = pair(family, VOCAB_SIZE)
    rows = [row for options in OPTIONS for row in wanted(family, options)]
    engine = Engine(model, max_slots=48, max_batch_tokens=300, stop_text=letters)
    answers = engine.generate([row[0] for row in rows], [row[1] for row in rows])
    for (_, _, tokens, scores), answer in zip(rows, answers, strict=True):
        check(answer, tokens, scores)
    assert {one.finish_reason for answer in answers for one in answer.outputs} == {"eos", "length", "stop"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, CNN, BLENDERBOT], ids=named)
def test_a_decoder_alone_gives_the_references_tokens(pair, wanted, options):
    _, model = pair("bart_causal", VOCAB_SIZE)
    for prompt, params, tokens, scores in wanted("bart_causal", options):
        check(Engine(model).generate([prompt], params)[0], tokens, scores)


@pytest.mark.filterwarnings("ignore")
def test_log_probabilities_of_beams_are_the_references_transition_scores(pair):
    reference, model = pair("bart")
    options = {"max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 3, "repetition_penalty": 1.3}
    for prompt in prompts_of():
        with torch.no_grad():
            wanted = reference.generate(
                torch.tensor([prompt]), return_dict_in_generate=True, output_scores=True, output_logits=True, **options
            )
        transitions = reference.compute_transition_scores(wanted.sequences, wanted.scores, wanted.beam_indices)
        outputs = Engine(model).generate([prompt], GenerationParams(**options))[0].outputs
        for one, scores in zip(outputs, transitions, strict=True):
            assert one.log_probs == pytest.approx(scores[: len(one.token_ids)].tolist(), abs=1e-4)


def test_stop_strings_without_text_are_refused(pair):
    with pytest.raises(ParamsError, match="stop_text="):
        Engine(pair("bart")[1]).generate([[5]], GenerationParams(stop_strings="x"))
