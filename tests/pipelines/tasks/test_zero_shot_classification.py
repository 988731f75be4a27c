"""Zero-shot classification against the reference's pipeline."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

from batchloom import pipelines
from batchloom.pipelines.errors import ConfigError

NLI = {
    "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
    "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
}
LABELS = ["river", "journal of the harbour", "engine", "data"]


@pytest.fixture(scope="module")
def nli(make_checkpoint):
    return make_checkpoint("BartForSequenceClassification", **NLI)


def reference(folder, **options):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    is_bloom = model.config.model_type == "bloom"
    kind = transformers.PreTrainedTokenizerFast if is_bloom else transformers.BartTokenizerFast
    tokenizer = kind.from_pretrained(folder)
    pipeline = transformers.pipeline("zero-shot-classification", model=model, tokenizer=tokenizer)
    return lambda texts, labels: [pipeline(text, labels, **options) for text in texts]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]])
def test_scores_are_those_of_the_pipeline(ask, equal, nli, make_sentences, multi_label, labels):
    texts = make_sentences(10, seed=7)
    options = {"multi_label": multi_label, "hypothesis_template": "It tells of a {}."}
    part = ask("zero-shot-classification", nli, {"text": texts}, options={"candidate_labels": labels, **options})
    expected = reference(nli, **options)(texts, labels)
    theirs = [(one["labels"], one["scores"]) for one in expected]
    equal("zero-shot-classification", [(row["labels"], row["scores"]) for row in part.to_pylist()], theirs, 1e-5)


def test_the_best_label_gives_way_to_a_kept_column_of_its_name(make_job, nli, tmp_path):
    """The right label, in a corpus to be evaluated on: the job was refused."""
    pq.write_table(pa.table({"text": ["a b", "c"], "label": [3, 1]}), tmp_path / "news.parquet")
    asked = {"task": "zero-shot-classification", "generation": {}, "task_options": {"candidate_labels": LABELS}}

    def columns(keep_columns: tuple[str, ...] | None) -> list[str]:
        job = make_job(model=str(nli), paths=(str(tmp_path / "news.parquet"),), keep_columns=keep_columns, **asked)
        return [field.name for field in pipelines.plan(job).task.output_fields()]

    assert columns(None) == ["labels", "scores"]
    assert columns(()) == ["labels", "scores", "label", "score"]


def test_a_bloom_can_be_asked_too(ask, equal, make_checkpoint, make_sentences):
    model, texts = make_checkpoint("BloomForSequenceClassification", **NLI), make_sentences(4, seed=24, longest=10)
    part = ask("zero-shot-classification", model, {"text": texts}, options={"candidate_labels": LABELS})
    theirs = [(one["labels"], one["scores"]) for one in reference(model)(texts, LABELS)]
    equal("zero-shot-classification", [(row["labels"], row["scores"]) for row in part.to_pylist()], theirs, 1e-5)


def test_each_row_can_have_its_own_labels(ask, nli, make_sentences, error_kinds):
    texts = make_sentences(6, seed=8)
    own = [["river"], LABELS, [], None, ["zone", "unit"], [None, "zone"]]
    part = ask("zero-shot-classification", nli, {"text": texts, "topics": own}, options={"labels_column": "topics"})
    assert error_kinds(part) == [None, None, "no_labels", "null_text", None, "null_text"]
    assert part["error"][5]["message"].as_py() == "label 0 of column 'topics' is null in this row"
    for row in (0, 1, 4):
        (expected,) = reference(nli)([texts[row]], own[row])
        assert part["labels"][row].as_py() == expected["labels"]
        np.testing.assert_allclose(part["scores"][row].as_py(), expected["scores"], atol=1e-5)


def test_a_long_text_is_cut_beside_its_label_and_the_cut_counted(ask, nli, make_sentences):
    text = " ".join(make_sentences(30, seed=9))
    part = ask("zero-shot-classification", nli, {"text": [text]}, options={"candidate_labels": LABELS})
    tokenizer = transformers.BartTokenizerFast.from_pretrained(nli)
    hypothesis = max(len(tokenizer(f"This example is {label}.")["input_ids"]) for label in LABELS)
    kept = 128 - hypothesis - 2
    assert part["num_truncated_tokens"].to_pylist() == [len(tokenizer(text)["input_ids"]) - 2 - kept]
    assert max(part["scores"][0].as_py()) > 0


def test_the_logits_of_entailment_are_found_by_name(ask, make_checkpoint, make_sentences):
    texts, labels = make_sentences(4, seed=10), {"ENTAILMENT": 0, "Neutral": 1, "Contradiction": 2}
    model = make_checkpoint(
        "BartForSequenceClassification", label2id=labels, id2label={column: label for label, column in labels.items()}
    )
    options = {"candidate_labels": LABELS, "multi_label": True}
    part = ask("zero-shot-classification", model, {"text": texts}, options=options)
    expected = reference(model, multi_label=True)(texts, LABELS)
    assert part["labels"].to_pylist() == [one["labels"] for one in expected]
    np.testing.assert_allclose(part["scores"].to_pylist(), [one["scores"] for one in expected], atol=1e-5)


def test_the_best_label_stands_beside_the_lists(ask, nli, make_sentences):
    texts = [*make_sentences(4, seed=11), None]
    part = ask("zero-shot-classification", nli, {"text": texts}, options={"candidate_labels": LABELS})
    for labels, scores, label, score in zip(*part.columns[:4], strict=True):
        assert label.as_py() == (labels.as_py() and labels.as_py()[0])
        assert score.as_py() == (scores.as_py() and scores.as_py()[0])
    assert part["label"][4].as_py() is part["score"][4].as_py() is None


def test_labels_above_a_threshold_are_listed(ask, nli, make_sentences):
    """A row can have none of them, or all; the scores are those that it has without a threshold."""
    texts, options = [*make_sentences(6, seed=12), None], {"candidate_labels": LABELS, "multi_label": True}
    without = ask("zero-shot-classification", nli, {"text": texts}, options=options)
    scores = [score for row in without["scores"].to_pylist()[:6] for score in row]
    for threshold in (0, sorted(scores)[len(scores) // 2], 1):
        part = ask("zero-shot-classification", nli, {"text": texts}, options={**options, "threshold": threshold})
        above = part["labels_above"].to_pylist()
        assert above.pop() is None
        assert above == [
            [label for label, score in zip(row["labels"], row["scores"], strict=True) if score > threshold]
            for row in without.to_pylist()[:6]
        ]
        assert len({len(labels) for labels in above}) > 1 or threshold in (0, 1)
        assert part.drop_columns(["labels_above"]) == without


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set one of candidate_labels"),
        ({"candidate_labels": ["a"], "labels_column": "b"}, "set one of candidate_labels"),
        ({"candidate_labels": []}, "at least one label"),
        ({"candidate_labels": ["a", " "]}, "none of white space alone"),
        ({"candidate_labels": "a, b"}, "a list of texts or null; found 'a, b'"),
        ({"candidate_labels": ["a"], "hypothesis_template": "This is it."}, "where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{label}"}, "where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{0.real}"}, "where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{0[a]}"}, "where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{:>9999999999}"}, "where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{!r:{}}"}, "where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{} or {}"}, "has not one {} where the label goes"),
        ({"candidate_labels": ["a"], "multi_label": "yes"}, "must be true or false"),
        ({"candidate_labels": ["a"], "threshold": 0.5}, "threshold: is for multi_label: true"),
        ({"candidate_labels": ["a"], "multi_label": True, "threshold": 50}, "is 50, must be between 0 and 1"),
        ({"candidate_labels": ["a"], "multi_label": True, "threshold": "0.5"}, "must be a number or null"),
    ],
)
def test_what_cannot_be_meant_is_refused(ask, nli, options, message):
    with pytest.raises(ConfigError, match=message):
        ask("zero-shot-classification", nli, {"text": ["a"]}, options=options)


def test_a_checkpoint_without_entailment_is_refused(ask, make_checkpoint):
    model = make_checkpoint("BartForSequenceClassification", num_labels=2)
    with pytest.raises(ConfigError, match=r"trained on NLI.*LABEL_0, LABEL_1"):
        ask("zero-shot-classification", model, {"text": ["a"]}, options={"candidate_labels": ["a"]})
    with pytest.raises(ConfigError, match="generates no text, so num_beams would do nothing"):
        ask("zero-shot-classification", model, {"text": ["a"]}, generation={"num_beams": 2})
