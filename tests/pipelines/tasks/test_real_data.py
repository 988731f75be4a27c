"""Public texts and tokenizers through the tasks, with tiny random models: nothing lost, offsets right, all counted."""

import json
import time

import pytest

from batchloom.models import load_tokenizer
from batchloom.pipelines.tasks.chunks import chunks
from batchloom.pipelines.tasks.words import is_inside_word

SOME = pytest.mark.parametrize(
    "share", [pytest.param(0.05, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
NLI = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
NLI["label2id"] = {label: column for column, label in NLI["id2label"].items()}


def first(items, share):
    return items[: max(1, round(len(items) * share))]


def report(name, part, seconds):
    rows, cut = part.num_rows, sum(part["num_truncated_tokens"].to_pylist())
    read = sum(part["num_input_tokens"].to_pylist())
    print(f"\n{name}: {rows} rows, {rows / seconds:.1f} rows a second, {read} tokens read, {cut} truncated")


@pytest.fixture
def timed(ask):
    def run(name, *wanted, **more):
        began = time.perf_counter()
        part = ask(*wanted, **more)
        report(name, part, time.perf_counter() - began)
        assert part["error"].null_count == part.num_rows
        return part

    return run


def letters(text):
    return "".join(text.split())


@SOME
def test_meetings_are_summarized_whole(timed, make_checkpoint, real_data, share):
    lines = (real_data / "corpora/qmsum/ALL_jsonl_val.jsonl").read_text().splitlines()
    meetings = [
        "\n".join(f"{turn['speaker']}: {turn['content']}" for turn in json.loads(line)["meeting_transcripts"])
        for line in first(lines, share)
    ]
    model = make_checkpoint(
        "BartForConditionalGeneration", real_data / "tokenizers/bart-large-cnn", max_position_embeddings=1024
    )
    tokenizer = load_tokenizer(model)
    covered = total = 0
    for meeting in meetings:
        whole, position = letters(meeting), 0
        for piece in map(letters, chunks(meeting, tokenizer, " ", 1024)):
            begin = whole.rfind(piece, 0, position + len(piece))
            assert 0 <= begin <= position
            position = begin + len(piece)
        covered, total = covered + position, total + len(whole)
    assert covered == total
    options = {"long_documents": "chunk", "merge": "summarize", "prefix": " "}
    generation = {"num_beams": 1, "max_new_tokens": 16}
    part = timed("qmsum", "summarization", model, {"text": meetings}, options=options, generation=generation)
    assert sum(part["num_truncated_tokens"].to_pylist()) == 0
    print(f"coverage {covered / total:.0%} of {total} letters")


@SOME
def test_questions_are_answered_from_windows(timed, make_checkpoint, real_data, share):
    articles = json.loads((real_data / "corpora/xquad/xquad.en.json").read_text())["data"]
    pairs = [
        (question["question"], paragraph["context"])
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    questions, contexts = zip(*first(pairs, share), strict=True)
    model = make_checkpoint(
        "BartForQuestionAnswering", real_data / "tokenizers/bart-large-cnn", max_position_embeddings=1024
    )
    part = timed("xquad", "question-answering", model, {"question": questions, "context": contexts})
    for row, context in zip(part.to_pylist(), contexts, strict=True):
        assert row["answer"] == context[row["start"] : row["end"]]
        assert row["answer"].strip()


@SOME
def test_names_are_tagged_where_they_stand(timed, make_checkpoint, real_data, share):
    blocks = (real_data / "corpora/wikiann/en.dev").read_text().split("\n\n")
    words = [
        [line.split("\t")[0].removeprefix("en:") for line in block.splitlines()] for block in blocks if block.strip()
    ]
    texts = [" ".join(own) for own in first(words, share)]
    model = make_checkpoint("BloomForTokenClassification", real_data / "tokenizers/bart-large-cnn", num_labels=7)
    part = timed("wikiann", "token-classification", model, {"text": texts}, options={"aggregation_strategy": "first"})
    for text, entities in zip(texts, part["entities"].to_pylist(), strict=True):
        for one in entities:
            assert text[one["start"] : one["end"]] == one["word"] == one["word"].strip() != ""
            assert not is_inside_word(text, one["start"])
            assert one["end"] == len(text) or not is_inside_word(text, one["end"])


@SOME
def test_premises_are_held_against_hypotheses(timed, make_checkpoint, real_data, share):
    folder = real_data / "corpora/snli"
    premises, hypotheses = ((folder / name).read_text().splitlines() for name in ("s1.dev", "s2.dev"))
    premises, hypotheses = first(premises, share), [[one] for one in first(hypotheses, share)]
    model = make_checkpoint(
        "BartForSequenceClassification", real_data / "tokenizers/bart-large-cnn", max_position_embeddings=1024, **NLI
    )
    options = {"labels_column": "hypothesis", "hypothesis_template": "{}"}
    columns = {"text": premises, "hypothesis": hypotheses}
    part = timed("snli", "zero-shot-classification", model, columns, options=options)
    assert all(0 <= scores[0] <= 1 for scores in part["scores"].to_pylist())
    assert part["labels"].to_pylist() == hypotheses


@SOME
@pytest.mark.parametrize("family", ["blenderbot-400M-distill", "blenderbot_small-90M"])
def test_dialogues_are_answered(timed, make_checkpoint, real_data, share, family):
    dialogues = json.loads((real_data / "corpora/schema_guided_dialogue/dev_dialogues_001.json").read_text())
    turns = [[turn["utterance"] for turn in dialogue["turns"]][:-1] for dialogue in first(dialogues, share)]
    architecture = (
        "BlenderbotForConditionalGeneration" if "400M" in family else "BlenderbotSmallForConditionalGeneration"
    )
    positions = 128 if "400M" in family else 512  # as on the hub
    model = make_checkpoint(architecture, real_data / "tokenizers" / family, max_position_embeddings=positions)
    generation = {"num_beams": 1, "max_new_tokens": 8}
    part = timed(family, "conversational", model, {"text": turns}, generation=generation)
    for row, own in zip(part.to_pylist(), turns, strict=True):
        assert row["num_input_tokens"] <= positions
        assert (row["num_dropped_turns"] > 0) == (row["num_truncated_tokens"] > 0)
        assert row["num_dropped_turns"] < len(own)
