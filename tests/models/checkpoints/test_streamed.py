"""A model whose weights stay in their files answers as one that holds them."""

import pytest
import torch
import transformers

from batchloom.models import load_model, stream_model
from batchloom.models.errors import CheckpointError

SIZES = {
    "vocab_size": 83,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
BLOOM_SIZES = {"vocab_size": 83, "hidden_size": 24, "n_layer": 2, "n_head": 4, "num_labels": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    def make(architecture, **changes):
        family = architecture.split("For")[0]
        sizes = (BLOOM_SIZES if family == "Bloom" else SIZES) | changes
        if architecture == "BartForCausalLM":
            sizes["is_encoder_decoder"] = False
        torch.manual_seed(0)
        reference = getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**sizes))
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.normal_(0.0, 0.3)
        folder = str(tmp_path_factory.mktemp(architecture))
        reference.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("BartForConditionalGeneration", {}),
        ("BartForCausalLM", {}),
        ("BartForSequenceClassification", {}),
        ("BartForQuestionAnswering", {}),
        ("BlenderbotForConditionalGeneration", {}),
        ("BlenderbotSmallForConditionalGeneration", {}),
        ("BloomForCausalLM", {}),
        ("BloomForCausalLM", {"tie_word_embeddings": False}),
        ("BloomForTokenClassification", {}),
    ],
)
def test_a_streamed_model_answers_as_one_that_is_loaded(checkpoint, architecture, changes):
    """Plain products against laid out ones: 1e-5 on values of size 10 in float32."""
    folder = checkpoint(architecture, **changes)
    ids = torch.randint(4, 83, (3, 10), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 2
    arguments = (ids, None, ids.flip(1)) if architecture.endswith("ConditionalGeneration") else (ids,)
    loaded, streamed = load_model(folder, device="cpu"), stream_model(folder)
    torch.testing.assert_close(streamed(*arguments), loaded(*arguments), atol=1e-5, rtol=1e-5)


def test_no_weight_is_kept_after_its_use(checkpoint):
    streamed, read = stream_model(checkpoint("BloomForCausalLM")), []
    for parameter in streamed.parameters():

        def noted(original=parameter.read):
            weight = original()
            read.append(weight.untyped_storage()._weak_ref())
            return weight

        parameter.read = noted
    streamed(torch.arange(4, 12)[None])
    assert len(read) > len(list(streamed.parameters()))  # the embedding is the head too
    assert all(torch.UntypedStorage._expired(storage) for storage in read)


def test_weights_that_do_not_fit_are_named_before_any_is_read(checkpoint):
    with pytest.raises(CheckpointError, match=r"qa_outputs\.weight \[2, 24\] is missing"):
        stream_model(checkpoint("BartForConditionalGeneration"), "BartForQuestionAnswering")
