"""Fill-mask against the reference's pipeline, and spans against its generate."""

import pytest
import torch
import transformers

from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.fill_mask import filled_words

TEXTS = ["The river <mask> the harbour.", "A <mask> batch of <mask>, and a garden.", "<mask>"]


@pytest.fixture(scope="module")
def bart(make_checkpoint):
    return make_checkpoint("BartForConditionalGeneration")


def reference_tokenizer(folder):
    """With the mask that takes the space before it along, as every BART on the hub has it."""
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)
    return transformers.BartTokenizerFast.from_pretrained(folder, mask_token=mask)


def test_fills_are_those_of_the_pipeline(ask, equal, bart):
    tokenizer = reference_tokenizer(bart)
    model = transformers.BartForConditionalGeneration.from_pretrained(bart)
    pipeline = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=3)
    part = ask("fill-mask", bart, {"text": TEXTS}, options={"top_k": 3})
    for text, ours in zip(TEXTS, part["fills"].to_pylist(), strict=True):
        found = pipeline(text)
        theirs = found if text.count("<mask>") == 1 else [one for mask in found for one in mask]
        equal("fill-mask", [ours], [theirs], 1e-6)


def test_a_text_without_a_mask_is_an_error_row(ask, bart, error_kinds):
    part = ask("fill-mask", bart, {"text": ["no mask here", TEXTS[0], "<mask> " * 200]})
    assert error_kinds(part) == ["no_mask", None, "too_long"]
    assert len(part["fills"][1].as_py()) == 5


def test_a_span_is_what_the_reference_generates(ask, equal, bart):
    tokenizer = reference_tokenizer(bart)
    model = transformers.BartForConditionalGeneration.from_pretrained(bart).eval()
    wanted = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12}
    part = ask("fill-mask", bart, {"text": TEXTS}, options={"fill": "span"}, generation=wanted)
    for text, ours in zip(TEXTS, part["fills"].to_pylist(), strict=True):
        with torch.no_grad():
            tokens = model.generate(**tokenizer(text, return_tensors="pt"), **wanted)
        theirs = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        equal("fill-mask, span", [[one["sequence"] for one in ours]], [theirs])
        assert [one["token"] for one in ours] == [None, None]


@pytest.mark.parametrize(
    ("text", "sequence", "words"),
    [
        ("There is no <mask> in Syria", "There is no plan to stop the war in Syria", "plan to stop the war"),
        ("<mask> in Syria", "Peace in Syria", "Peace"),
        ("No <mask>", " No more", "more"),
        ("No <mask> in Syria", "No in Syria", ""),
        ("No <mask> in Syria", "Not in Syria at all", None),
        ("aba <mask> aba", "aba", None),
        ("<mask> and <mask>", "You and me", None),
    ],
)
def test_the_words_of_a_span_are_what_stands_between_the_rest(text, sequence, words):
    assert filled_words(text, "<mask>", sequence) == words


def test_a_mask_that_the_model_does_not_have_is_refused(ask, make_checkpoint, bart):
    """bart-large-cnn's tokenizer has 50265 tokens, the last of them the mask, and its model 50264."""
    small = make_checkpoint("BlenderbotSmallForConditionalGeneration")
    with pytest.raises(ConfigError, match="needs a mask token; the tokenizer of this checkpoint has none"):
        ask("fill-mask", small, {"text": TEXTS})
    cropped = make_checkpoint("BartForConditionalGeneration", vocab_size=4)
    with pytest.raises(ConfigError, match="has it at 4, and the model has 4 embeddings"):
        ask("fill-mask", cropped, {"text": TEXTS})
    with pytest.raises(ConfigError, match="num_return_sequences"):
        ask("fill-mask", bart, {"text": TEXTS}, options={"fill": "span", "top_k": 2})
