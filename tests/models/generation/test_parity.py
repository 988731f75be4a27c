"""Tokens and scores equal transformers' generate in float32: each prompt alone there, all in one continuous batch here.

Scores may differ by 1e-4, or 1e-5 of their size where it is above 10: they are sums of up to 30 log-probabilities, each
from float32 logits near 10 that agree to 2e-5.
"""

import pytest
import torch

from models import Engine, GenerationParams

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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: ", ".join(f"{k}={v}" for k, v in options.items()) or "none"
)
def test_tokens_and_scores_are_the_references(pair, options):
    reference, model = pair("bart")
    prompts = prompts_of()
    answers = Engine(model, max_slots=3 * options.get("num_beams", 1)).generate(prompts, GenerationParams(**options))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens, scores = reference_answer(reference, prompt, options)
        assert [one.token_ids for one in answer.outputs] == tokens
        assert [one.score for one in answer.outputs] == pytest.approx(scores, abs=1e-4, rel=1e-5)
