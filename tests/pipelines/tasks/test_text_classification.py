"""Text classification against the reference's pipeline."""

import numpy as np
import pytest
import transformers

from batchloom.pipelines.errors import ConfigError

CASES = {
    "several": {"num_labels": 4},
    "multi": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "alone": {"num_labels": 1},
}


def reference(folder, architecture, texts, **options):
    tokenizer = (
        transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        if architecture.startswith("Bloom")
        else transformers.BartTokenizerFast.from_pretrained(folder)
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    return [pipeline([text], **options)[0] for text in texts]


@pytest.mark.parametrize("architecture", ["BartForSequenceClassification", "BloomForSequenceClassification"])
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_pipeline(ask, equal, make_checkpoint, make_sentences, architecture, case):
    model, texts = make_checkpoint(architecture, **CASES[case]), make_sentences(8, seed=11, longest=20)
    part = ask("text-classification", model, {"text": texts})
    expected = reference(model, architecture, texts)
    equal("text-classification", part["scores"].to_pylist(), expected, 1e-5)
    assert part["label"].to_pylist() == [row[0]["label"] for row in expected]


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_function_can_be_chosen(ask, make_checkpoint, make_sentences, function):
    model, texts = make_checkpoint("BartForSequenceClassification", num_labels=4), make_sentences(3, seed=12)
    part = ask("text-classification", model, {"text": texts}, options={"function_to_apply": function, "top_k": 2})
    expected = reference(model, "BartForSequenceClassification", texts, function_to_apply=function)
    ours = [[one["score"] for one in row] for row in part["scores"].to_pylist()]
    np.testing.assert_allclose(ours, [[one["score"] for one in row[:2]] for row in expected], atol=1e-5)


def test_a_long_text_is_cut_and_the_cut_counted(ask, make_checkpoint):
    model = make_checkpoint("BartForSequenceClassification", num_labels=4)
    part = ask("text-classification", model, {"text": ["river " * 400]})
    assert part["num_input_tokens"].to_pylist() == [128]
    assert part["num_truncated_tokens"][0].as_py() > 100


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("BartForSequenceClassification", {"top_k": 0}, "top_k: is 0"),
        ("BartForSequenceClassification", {"function_to_apply": "tanh"}, "one of softmax, sigmoid, none or null"),
        ("BartForConditionalGeneration", {}, "Use another checkpoint, or a task that this one can do: summarization"),
    ],
)
def test_what_cannot_be_meant_is_refused(ask, make_checkpoint, architecture, options, message):
    with pytest.raises(ConfigError, match=message):
        ask("text-classification", make_checkpoint(architecture), {"text": ["a"]}, options=options)
