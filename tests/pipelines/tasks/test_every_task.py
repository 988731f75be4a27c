"""What holds for all tasks: odd texts keep their rows, equal rows are computed once, columns are the declared ones."""

import math
import shutil

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from batchloom.models import SinglePass, load_tokenizer
from batchloom.models.single_pass.scoring import TokenScores
from batchloom.pipelines.tasks import TASKS

NLI = {"id2label": {0: "contradiction", 1: "entailment"}, "label2id": {"contradiction": 0, "entailment": 1}}
CASES = {
    "summarization": ("BartForConditionalGeneration", {}, {"long_documents": "chunk"}),
    "text-generation": ("BloomForCausalLM", {}, {}),
    "text2text-generation": ("BartForConditionalGeneration", {}, {}),
    "conversational": ("BlenderbotSmallForConditionalGeneration", {}, {}),
    "zero-shot-classification": ("BartForSequenceClassification", NLI, {"candidate_labels": ["a", "b"]}),
    "text-classification": ("BartForSequenceClassification", {"num_labels": 3}, {}),
    "token-classification": ("BloomForTokenClassification", {"num_labels": 3}, {}),
    "question-answering": ("BartForQuestionAnswering", {}, {"doc_stride": 16}),
    "fill-mask": ("BartForConditionalGeneration", {}, {}),
    "feature-extraction": ("BartModel", {}, {}),
    "perplexity": ("BartForCausalLM", {}, {}),
    "scoring": ("BloomForCausalLM", {}, {"target_column": "target"}),
}
COLUMNS = {
    "summarization": ["summary_text"],
    "text-generation": ["generated_text"],
    "text2text-generation": ["generated_text"],
    "conversational": ["reply", "num_dropped_turns"],
    "zero-shot-classification": ["labels", "scores", "label", "score"],
    "text-classification": ["label", "scores"],
    "token-classification": ["entities"],
    "question-answering": ["answer", "score", "start", "end"],
    "fill-mask": ["fills"],
    "feature-extraction": ["embedding"],
    "perplexity": ["log_likelihood", "num_scored_tokens", "perplexity"],
    "scoring": ["log_likelihood", "num_scored_tokens", "perplexity"],
}
LEDGER = ["num_input_tokens", "num_output_tokens", "num_truncated_tokens", "finish_reason", "error"]
ODD = [
    "The river.",
    None,
    "",
    " \n\t\u3000",
    "\x00",
    "a\x00b",
    "😀👩‍👩‍👧",
    "שלום עולם",
    "\u200f\u202e",
    "\ufeff",
    "ﬁ\u0301",
    "\r\n.\r\n",
]
GENERATES = {"summarization", "text-generation", "text2text-generation", "conversational"}


def asked(task, texts):
    if task == "fill-mask" and isinstance(texts, list):
        texts = [text and f"{text} <mask>" if text and text.strip() else text for text in texts]
    column = pa.array(texts, pa.string()) if isinstance(texts, list) else texts
    if task == "question-answering":
        return {"question": ["Where is it?"] * len(texts), "context": column}
    return {"text": column} | ({"target": ["A zone."] * len(texts)} if task == "scoring" else {})


@pytest.fixture
def ask_case(ask, make_checkpoint):
    def run(task, texts, **more):
        architecture, config, options = CASES[task]
        generation = {"max_new_tokens": 4, "num_beams": 1} if task in GENERATES else {}
        model = make_checkpoint(architecture, **config)
        return ask(task, model, asked(task, texts), options=options, generation=generation, **more)

    return run


def test_every_task_is_tried_here():
    assert set(CASES) == set(COLUMNS) == set(TASKS)


@pytest.mark.parametrize("task", CASES)
def test_odd_texts_have_an_answer_or_an_error_row(ask_case, error_kinds, task):
    part = ask_case(task, ODD)
    assert part.column_names == [*COLUMNS[task], *LEDGER]
    assert error_kinds(part)[:4] == [None, "null_text", "empty_text", "empty_text"]
    for row in part.to_pylist():
        is_answered = row[COLUMNS[task][0]] is not None
        assert is_answered == (row["error"] is None)
        assert (row["num_input_tokens"] > 0) == is_answered


@pytest.mark.parametrize("task", CASES)
def test_a_unit_of_nulls_has_the_columns_of_the_others(ask_case, task):
    some, none, empty = ask_case(task, ["The river."]), ask_case(task, [None, None]), ask_case(task, [])
    assert some.schema == none.schema == empty.schema
    assert none["error"].null_count == 0


def not_utf8(*contents):
    """Text as a careless writer of Parquet leaves it: nobody has looked at the bytes."""
    array = pa.array(contents, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


@pytest.mark.parametrize("task", CASES)
def test_bytes_that_are_no_utf8_are_an_error_row(ask_case, error_kinds, task):
    """One such row ended the job, each time that it was run."""
    mask = b" <mask>" if task == "fill-mask" else b""
    texts = not_utf8(b"The river." + mask, b"\xff\xfe river", b"A zone." + mask)
    assert error_kinds(ask_case(task, texts)) == [None, "not_utf8", None]


def test_a_list_with_bytes_that_are_no_utf8_is_an_error_row(ask, make_checkpoint, error_kinds):
    turns = pa.ListArray.from_arrays([0, 1, 3, 4], not_utf8(b"Hello.", b"Yes.", b"\xff", b"Hi."))
    generation = {"max_new_tokens": 4, "num_beams": 1}
    model = make_checkpoint("BlenderbotSmallForConditionalGeneration")
    part = ask("conversational", model, {"text": turns}, generation=generation)
    assert error_kinds(part) == [None, "not_utf8", None]


def rounded(value):
    """To 4 digits: the last ones of a float depend on the shape of the batch that it was computed in."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


@pytest.mark.parametrize("task", CASES)
def test_equal_rows_are_answered_as_if_each_were_alone(ask_case, task):
    texts = ["The river.", "A zone, a unit.", "The river.", None, "A zone, a unit.", "The river.", None]
    once, each = ask_case(task, texts), ask_case(task, texts, compute_once=False)
    assert rounded(once.to_pylist()) == rounded(each.to_pylist())


WHOLE_TEXT = {"summarization", "text-generation", "perplexity", "scoring", "question-answering", "token-classification"}


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task in WHOLE_TEXT else ()) for task in CASES]
)
def test_a_million_characters_have_an_answer_or_an_error_row(ask_case, task):
    part = ask_case(task, ["The river.", "The river of the harbour. " * 40_000])
    assert part["error"][0].as_py() is None
    assert (part[COLUMNS[task][0]][1].as_py() is None) == (part["error"][1].as_py() is not None)


FAR = TokenScores(torch.full((3,), -1000.0))
LONG = " ".join(["river"] * 60)


def spoilt(model, folder):
    """A copy of a checkpoint with NaN at the 40th position, or for "river" where there are none."""
    copy = folder / "spoilt"
    shutil.copytree(model, copy)
    weights = load_file(copy / "model.safetensors")
    names = [name for name in weights if "embed_positions" in name]
    for name in names:
        weights[name][40] = math.nan
    if not names:
        (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
        (ids,) = load_tokenizer(model).encode_batch([" river"])
        weights[name][ids] = math.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


@pytest.mark.parametrize("task", CASES)
def test_a_row_that_is_not_finite_is_an_error_and_the_others_are_answered(ask, make_checkpoint, tmp_path, task):
    architecture, config, options = CASES[task]
    model = make_checkpoint(architecture, **config)
    generation = {"max_new_tokens": 4, "num_beams": 1} if task in GENERATES else {}
    columns = asked(task, ["The zone.", LONG, "A garden of data"])
    healthy = ask(task, model, columns, options=options, generation=generation).to_pylist()
    found = ask(task, spoilt(model, tmp_path), columns, options=options, generation=generation).to_pylist()
    if architecture == "BloomForCausalLM":  # its head is the embedding: no row is finite
        assert [row["error"]["kind"] for row in found] == ["not_finite"] * 3
        return
    assert [found[0], found[2]] == [healthy[0], healthy[2]]
    assert (found[1]["error"]["stage"], found[1]["error"]["kind"]) == ("infer", "not_finite")
    assert "in float32. The checkpoint probably holds NaN or infinite weights" in found[1]["error"]["message"]
    assert all(found[1][column] is None for column in COLUMNS[task])


def test_a_perplexity_that_no_float_holds_is_an_error(monkeypatch, ask_case):
    """The scores are finite, and what is made of them is not: nothing of the kind goes into a column."""
    monkeypatch.setattr(SinglePass, "score", lambda _, sequences: [FAR for _ in sequences])
    (row,) = ask_case("perplexity", ["The river."]).to_pylist()
    assert (row["error"]["stage"], row["error"]["kind"]) == ("finish", "not_finite")
    assert "The row's perplexity is not finite" in row["error"]["message"]
    assert row["log_likelihood"] is row["perplexity"] is None


@pytest.mark.parametrize("task", CASES)
def test_a_unit_without_rows_has_the_columns_and_no_row(ask_case, task):
    """As where a selection leaves out all of its rows."""
    part = ask_case(task, [])
    assert part.column_names == [*COLUMNS[task], *LEDGER]
    assert part.num_rows == 0
