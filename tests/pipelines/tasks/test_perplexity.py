"""Perplexity against the reference's logits, by the recipe of its documentation."""

import math

import numpy as np
import pytest
import torch
import transformers

from batchloom.models import load_tokenizer
from batchloom.pipelines.errors import ConfigError


def log_probs(folder, architecture, ids):
    """What the reference gives each token: of ids[1:] given those before, or of all ids given all of them."""
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    with torch.no_grad():
        input_ids = torch.tensor([ids])
        if model.config.is_encoder_decoder:
            logits = model(input_ids, labels=input_ids).logits[0]
            return logits.log_softmax(-1).gather(1, input_ids[0][:, None])[:, 0].numpy()
        logits = model(input_ids).logits[0, :-1]
        return logits.log_softmax(-1).gather(1, input_ids[0, 1:, None])[:, 0].numpy()


@pytest.mark.parametrize("architecture", ["BloomForCausalLM", "BartForCausalLM", "BartForConditionalGeneration"])
def test_likelihoods_are_those_of_the_reference(ask, equal, make_checkpoint, make_sentences, architecture):
    model, texts = make_checkpoint(architecture), make_sentences(6, seed=14, longest=15)
    part = ask("perplexity", model, {"text": texts}, options={"per_token": True})
    for row, ids in zip(part.to_pylist(), load_tokenizer(model).encode_batch(texts), strict=True):
        expected = log_probs(model, architecture, ids)
        equal("perplexity, a token", [row["token_log_likelihoods"]], [expected.tolist()], 1e-4)
        assert row["num_scored_tokens"] == len(expected)
        assert row["log_likelihood"] == pytest.approx(expected.sum(), abs=1e-3)
        assert row["perplexity"] == pytest.approx(math.exp(-expected.mean()), rel=1e-4)


@pytest.mark.parametrize("stride", [None, 100, 128])
def test_a_long_text_is_read_in_windows_and_each_token_scored_once(ask, make_checkpoint, make_sentences, stride):
    model, text = make_checkpoint("BartForCausalLM"), " ".join(make_sentences(20, seed=15))
    part = ask("perplexity", model, {"text": [text]}, options={"per_token": True, "stride": stride})
    (ids,) = load_tokenizer(model).encode_batch([text])
    expected, before, begin = [], 0, 0
    while before < len(ids):  # the loop of the documentation of perplexity
        end = min(begin + 128, len(ids))
        expected += log_probs(model, "BartForCausalLM", ids[begin:end])[-(end - before) :].tolist()
        before, begin = end, begin + (stride or 64)
    np.testing.assert_allclose(part["token_log_likelihoods"][0].as_py(), expected, atol=1e-4)
    assert part["num_scored_tokens"][0].as_py() >= len(ids) - 1 - len(ids) // 128


def test_one_token_has_nothing_to_be_scored_by(ask, make_checkpoint, error_kinds):
    part = ask("perplexity", make_checkpoint("BloomForCausalLM"), {"text": ["a", "ab cd"]})
    assert error_kinds(part) == ["too_short", None]
    with pytest.raises(ConfigError, match="stride: is 129, must be from 1 to 128"):
        ask("perplexity", make_checkpoint("BartForCausalLM"), {"text": ["a"]}, options={"stride": 129})
