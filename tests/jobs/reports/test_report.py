"""What a report says of an output: figures that were computed by hand, samples with their input, pages."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.jobs.reports import view
from batchloom.jobs.reports.analysis import scan
from batchloom.jobs.reports.analysis.report import Report
from batchloom.jobs.reports.blocks import Bars, Facts, Histogram, Line, Samples, Share, Table, table_of
from batchloom.jobs.reports.numbers import Tally, histogram
from batchloom.jobs.reports.pages import cells
from batchloom.jobs.reports.pages.markdown import markdown
from batchloom.jobs.reports.pages.page import page
from batchloom.pipelines.config import InputConfig, OutputConfig
from batchloom.pipelines.counts import Counts
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.running.course import MOST, Course
from batchloom.pipelines.selection.mask import Mask
from tests.jobs.reports.synthetic import table, write_output

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "direction": "safe \u202egnp.exe\u2066 \u200f",
    "long word": "W" * 5000,
    "emoji": "\U0001f469\u200d\U0001f467 family",
    "control": "bell\x07 null\x00 escape\x1b[31m",
    "markup": "[click](http://tracker.example/) `code` | pipe ![](http://tracker.example/x.png) **bold** # head",
    "template": "{{7*7}} ${x} {% raw %}",
    "right to left": "\u05e9\u05dc\u05d5\u05dd",
    "empty": "",
}
NULL = {"stage": "prepare", "kind": "null_text", "message": "column text is null"}
LONG = {"stage": "prepare", "kind": "too_long", "message": "the text has <b>1,203</b> tokens"}


def report_of(folder: Path, **options: Any) -> Report:
    return Report.of(view.look(str(folder)), **options)


def blocks(report: Report, kind: type[Any], title: str = "") -> Any:
    """The only block of a kind that has this title."""
    every = [block for section in report.sections for block in section.blocks if isinstance(block, kind)]
    titled = [one for one in every if not title or (table_of(one) if isinstance(one, Bars) else one).title == title]
    assert len(titled) == 1, [getattr(one, "title", "") for one in every]
    return titled[0]


def labels(num_rows: int, seed: int = 0) -> pa.Table:
    """Answers of zero-shot-classification."""
    scores = np.sort(np.random.default_rng(seed).dirichlet(np.ones(3), num_rows).astype(np.float32), 1)[:, ::-1]
    names = [["sports", "<b>news</b>", "art"][row % 3 if row % 4 else 0] for row in range(num_rows)]
    return table(
        {
            "text": [list(HOSTILE.values())[row % len(HOSTILE)] for row in range(num_rows)],
            "labels": [[name, "x", "y"] for name in names],
            "scores": scores.tolist(),
            "label": names,
            "score": pa.array(scores[:, 0], pa.float32()),
        },
        dict.fromkeys(range(5, num_rows, 100), NULL),
        num_input_tokens=[3 + row % 50 for row in range(num_rows)],
    )


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_labels_are_counted_exactly(tmp_path: Path, format: str) -> None:
    output = OutputConfig(path=str(tmp_path), format=format)  # type: ignore[arg-type]
    parts = [labels(300), labels(200, seed=1)]
    write_output(tmp_path, "zero-shot-classification", parts, kept=["text"], output=output)
    report = report_of(tmp_path)
    answered = [row for part in parts for row in part.to_pylist() if row["error"] is None]
    found = blocks(report, Bars, "Rows by best label").table
    expected = {
        name: [row["score"] for row in answered if row["label"] == name] for name in ("sports", "<b>news</b>", "art")
    }
    assert {name: count for name, count, *_ in found.rows} == {name: len(own) for name, own in expected.items()}
    assert [count for _, count, *_ in found.rows] == sorted(map(len, expected.values()), reverse=True)
    for name, _, share, mean in found.rows:
        assert share == pytest.approx(len(expected[name]) / len(answered))
        assert mean == pytest.approx(np.mean(expected[name]), rel=1e-5)
    scores = blocks(report, Histogram, "Scores of the best label")
    assert sum(scores.counts) == len(answered) == 495
    assert scores.edges[0] == 0
    assert scores.edges[-1] == 1
    assert scores.counts == tuple(np.histogram([row["score"] for row in answered], scores.edges)[0])
    sure = blocks(report, Facts, "How sure the model was").values
    assert sure["rows below 0.5"] == sum(row["score"] < 0.5 for row in answered)
    lengths = blocks(report, Histogram, "Input lengths")
    assert (sum(lengths.counts), lengths.median) == (495, np.median([row["num_input_tokens"] for row in answered]))
    assert "Output lengths" not in report.histograms()  # it writes no tokens


def test_a_kept_column_that_is_called_label_is_no_answer(tmp_path: Path) -> None:
    rows = labels(9).drop_columns(["label", "score"])
    rows = rows.add_column(0, "label", pa.array([7] * 9))
    write_output(tmp_path, "zero-shot-classification", [rows], kept=["label", "text"])
    assert {name for name, *_ in blocks(report_of(tmp_path), Bars, "Rows by best label").table.rows} <= {
        "sports", "<b>news</b>", "art",
    }  # fmt: skip


def test_labels_above_a_threshold_are_counted(tmp_path: Path) -> None:
    above = pa.array([["sports", "art"], [], ["art"], None], pa.list_(pa.string()))
    rows = labels(4).slice(0, 4).add_column(5, "labels_above", above)
    job = {"task_options": {"multi_label": True, "threshold": 0.5}}
    write_output(tmp_path, "zero-shot-classification", [rows], kept=["text"], job=job)
    found = blocks(report_of(tmp_path), Bars, "Labels above the threshold").table
    assert [(name, count) for name, count, _ in found.rows] == [("art", 2), ("sports", 1)]
    assert found.note == "2 of 4 rows have a label above the threshold."


def test_answers_are_measured_beside_their_sources(tmp_path: Path) -> None:
    sources = [row % 100 + 1 for row in range(1000)]
    written = [max(1, source // 2) for source in sources]
    texts = ["same" if row < 30 else f"answer {row}" for row in range(1000)]
    rows = table(
        {"summary_text": texts},
        num_input_tokens=sources,
        num_output_tokens=written,
        finish_reason=["stop" if row % 4 else "length" for row in range(1000)],
    )
    odd = {"empty": 1, "copied": 2, "repeating": 3, "truncated": 250}
    write_output(tmp_path, "summarization", [rows], degenerate=odd)
    report = report_of(tmp_path)
    assert [count for _, count, _ in blocks(report, Table, "Answers to look at").rows] == list(odd.values())
    facts = blocks(report, Facts, "Answers and their sources").values
    assert facts["answers longer than their source"] == 0
    assert facts["different answers"] == "971 different of 1,000"
    assert facts["answer over source, median"] == pytest.approx(np.median(np.divide(written, sources)))
    assert blocks(report, Table, "Most frequent answers").rows == (("same", 30, Share(0.03)),)
    assert {name: count for name, count, _ in blocks(report, Table, "How answers ended").rows} == {
        "stop": 750,
        "length": 250,
    }
    line = blocks(report, Line, "Answers by the lengths of their sources")
    for (place, middle), (low, high) in zip(line.points, line.band, strict=True):
        assert middle == pytest.approx(place / 2, abs=2)
        assert low <= middle <= high
    assert report.words()["Degenerate"] == "1 empty, 2 copied, 3 repeating, 250 truncated"


def test_of_several_answers_to_a_row_the_first_counts(tmp_path: Path) -> None:
    rows = table({"generated_text": [["a", "b"], ["a", "c"], ["d", "a"]]}, num_output_tokens=[2, 2, 2])
    write_output(tmp_path, "text-generation", [rows])
    assert blocks(report_of(tmp_path), Table, "Most frequent answers").rows == (("a", 2, Share(2 / 3)),)


def test_entities_are_counted_by_kind(tmp_path: Path) -> None:
    def entity(kind: str, word: str, score: float) -> dict[str, Any]:
        return {"entity_group": kind, "score": score, "word": word, "start": 0, "end": 1}

    found = [[entity("PER", "Ada", 0.5), entity("LOC", "Paris", 1.0)], [], [entity("PER", "Ada", 1.0)]]
    write_output(tmp_path, "token-classification", [table({"text": ["x"] * 3, "entities": found})], kept=["text"])
    report = report_of(tmp_path)
    assert blocks(report, Bars, "Entities by kind").table.rows == (("PER", 2, 2 / 3, 0.75), ("LOC", 1, 1 / 3, 1.0))
    assert blocks(report, Table, "Most frequent entities").rows == (("Ada", "PER", 2), ("Paris", "LOC", 1))
    assert blocks(report, Facts, "Entities and rows").values["rows without any"] == 1


def test_answers_to_questions_are_counted(tmp_path: Path) -> None:
    answers = {"answer": ["Ada", "", "Ada", "Bob"], "score": pa.array([0.5, 0.1, 1.0, 0.7], pa.float32())}
    rows = table({"question": ["?"] * 4, "context": ["."] * 4, **answers, "start": [0] * 4, "end": [3] * 4})
    write_output(tmp_path, "question-answering", [rows], kept=["question", "context"])
    report = report_of(tmp_path)
    assert blocks(report, Bars, "Rows with an answer").table.rows == (("answer", 3, 0.75), ("(no answer)", 1, 0.25))
    assert blocks(report, Table, "Most frequent answers").rows == (("Ada", 2, 2 / 3),)


def test_the_best_of_several_targets_are_counted(tmp_path: Path) -> None:
    """One of probability 0 is null: no other leads it by any number."""
    scores = [[-2.0, -1.0], [-1.0, -4.0], [-9.0, -3.0, None, -5.0], [-1.0, None]]
    lengths = pa.array([[1] * len(own) for own in scores], pa.list_(pa.int32()))
    best = pa.array([1, 0, 1, 0], pa.int32())
    rows = table({"log_likelihoods": scores, "num_scored_tokens": lengths, "best": best})
    write_output(tmp_path, "scoring", [rows], job={"task_options": {"targets_column": "summaries"}})
    report = report_of(tmp_path)
    assert blocks(report, Bars, "Rows by best target").table.rows == (("0", 2, Share(0.5)), ("1", 2, Share(0.5)))
    facts = [one.values for section in report.sections for one in section.blocks if isinstance(one, Facts)]
    assert facts[0] == {"targets": 10, "scored tokens": 10, "median lead": 2.0}  # of 1, 3 and 2


def test_vectors_are_described(tmp_path: Path) -> None:
    vectors = np.zeros((5, 4), np.float32)
    vectors[1:, 0] = [1, 2, 2, 0]
    vectors[4, 1] = 3
    rows = table({"text": ["x"] * 5, "embedding": vectors.tolist()})
    write_output(tmp_path, "feature-extraction", [rows], kept=["text"])
    facts = blocks(report_of(tmp_path), Facts, "Vectors").values
    assert (facts["dimensions"], facts["zero vectors"], facts["largest norm"]) == (4, 1, 3)
    assert (facts["pairs compared"], facts["pairs that are equal"]) == (6, 3)  # 1, 2 and 2 point the same way


@pytest.mark.parametrize("pooling", ["none", ["none"], ["none", "cls", "mean"]], ids=str)
def test_states_of_tokens_are_no_vectors(tmp_path: Path, pooling: str | list[str]) -> None:
    """Of several poolings the first with a vector for each row is described."""
    one = "embedding" if isinstance(pooling, str) else "embedding_none"
    rows = {"text": ["x"], one: [[[0.5, 2.0], [1.0, 1.0]]], "tokens": [[7, 2]]}
    rows |= {f"embedding_{own}": [[3.0, 4.0]] for own in pooling if own in ("cls", "mean")}
    write_output(
        tmp_path, "feature-extraction", [table(rows)], kept=["text"], job={"task_options": {"pooling": pooling}}
    )
    report = report_of(tmp_path)
    assert "2 x 2 numbers: 0.5000, 2.0000" in markdown(report)
    every = [block for section in report.sections for block in section.blocks]
    found = [block for block in every if isinstance(block, Facts) and block.title == "Vectors"]
    assert [facts.values["largest norm"] for facts in found] == ([5.0] if "cls" in pooling else [])


@pytest.mark.parametrize(
    ("task", "answers", "title"),
    [
        ("text-classification", {"label": ["A"], "scores": [[{"label": "A", "score": 0.9}]]}, "Rows by best label"),
        ("fill-mask", {"fills": [[{"token_str": " cat", "score": 0.5, "sequence": "a cat"}]]}, "Rows by best fill"),
        ("perplexity", {"log_likelihood": [-2.0], "num_scored_tokens": [2], "perplexity": [2.7]}, None),
        ("scoring", {"log_likelihood": [-2.0], "num_scored_tokens": [2], "perplexity": [2.7]}, None),
        ("something-new", {"value": [1]}, None),
    ],
)  # fmt: skip
def test_every_task_has_a_report(tmp_path: Path, task: str, answers: Mapping[str, Any], title: str | None) -> None:
    write_output(tmp_path, task, [table({"text": ["x"], **answers})], kept=["text"])
    report = report_of(tmp_path)
    assert title is None or blocks(report, Bars, title).table.rows[0][1] == 1
    assert f"{task} with tiny" in page(report)
    assert f"# {task} with tiny" in markdown(report)


def test_errors_are_counted_and_shown_by_kind(tmp_path: Path) -> None:
    errors = {row: NULL if row % 30 == 0 else LONG for row in range(0, 1000, 3)}
    texts = [None if row in errors else f"answer {row}" for row in range(1000)]
    rows = table({"id": list(range(1000)), "summary_text": texts}, errors, num_output_tokens=[5] * 1000)
    write_output(tmp_path, "summarization", [rows], kept=["id"])
    report = report_of(tmp_path)
    counts = {kind: count for kind, count, _ in blocks(report, Bars, "Errors by kind").table.rows}
    assert counts == {"too_long": 300, "null_text": 34}
    told = {
        kind: (stage, message, cure)
        for kind, stage, message, cure in blocks(report, Table, "What they are, and what helps").rows
    }
    assert told["too_long"][:2] == ("prepare", LONG["message"])
    assert "--retry-errors=too_long --set task_options.long_documents=chunk" in told["too_long"][2]
    wrong = blocks(report, Samples, "Rows with errors, by kind")
    assert [one.beside["id"] for one in wrong.rows] == ["3", "6", "0", "30"]
    assert all(one.error.startswith(("too_long: ", "null_text: ")) and not one.answered for one in wrong.rows)
    assert "&lt;b&gt;1,203&lt;/b&gt;" in page(report)


@pytest.fixture
def corpus_of_words(tmp_path: Path) -> Path:
    texts: list[str | None] = [f"words of row {row}" for row in range(100)]
    texts[41] = None
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(
        pa.table({"doc": pa.array([{"body": text} for text in texts])}), folder / "a.parquet", row_group_size=10
    )
    return folder


def answered_from(folder: Path, corpus: Path, **changes: Any) -> Path:
    """An output with a row of every second row of the corpus, as a selection leaves it."""
    (shard,), _ = find_shards(InputConfig(paths=(str(corpus),)))
    chosen = Mask.of(np.arange(100) % 2 == 1)
    rows = table({"summary_text": [f"answer {row}" for row in chosen.rows]}, {20: NULL}, num_output_tokens=[1] * 50)
    given = {"paths": [str(corpus)], "text_column": "doc.body", "keep_columns": []}
    options = {"job": {"input": given}, "identity": shard.source.identity, "shard": shard.name, "chosen": chosen}
    return write_output(folder, "summarization", [rows], **{**options, **changes})


def test_samples_have_their_input_beside(tmp_path: Path, corpus_of_words: Path) -> None:
    """Numbers of rows are those of the input also where a selection left some out."""
    report = report_of(answered_from(tmp_path / "out", corpus_of_words))
    good = blocks(report, Samples, "Some rows")
    assert good.note == ""
    assert len(good.rows) == 8
    for one in good.rows:
        assert one.asked["doc.body"].replace("words of row", "answer") == one.answered["summary_text"]
    (wrong,) = blocks(report, Samples, "Rows with errors, by kind").rows
    assert wrong.asked == {"doc.body": "(null)"}


def test_few_reads_of_the_input_are_enough(
    tmp_path: Path, corpus_of_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchloom.pipelines.stores.patient_file import PatientFile

    opened: list[str] = []
    before = PatientFile.__init__

    def noted(self: PatientFile, connection: Any, path: str, *others: Any, **named: Any) -> None:
        opened.append(path)
        before(self, connection, path, *others, **named)

    folder = answered_from(tmp_path / "out", corpus_of_words)
    monkeypatch.setattr(PatientFile, "__init__", noted)
    report_of(folder)
    assert 0 < sum(path.endswith("corpus/a.parquet") for path in opened) <= 2


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_samples_without_their_input_say_so(tmp_path: Path, corpus_of_words: Path, change: str) -> None:
    folder = answered_from(tmp_path / "out", corpus_of_words)
    if change == "removed":
        shutil.rmtree(corpus_of_words)
    else:
        pq.write_table(pa.table({"doc": [{"body": "other"}] * 100}), corpus_of_words / "a.parquet")
    good = blocks(report_of(folder), Samples, "Some rows")
    assert good.note.startswith("Without their input: ")
    assert [one.asked for one in good.rows] == [{}] * 8
    assert all(one.answered for one in good.rows)


def test_of_a_large_output_parts_are_read_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path, "zero-shot-classification", [labels(50, seed) for seed in range(10)], kept=["text"])
    monkeypatch.setattr(scan, "MAX_ROWS", 200)
    report = report_of(tmp_path)
    assert report.scan.num_rows == 200
    assert report.sections[0].note == "Counted in 200 rows of 4 of 10 parts, spread evenly; all have 500 rows."
    assert report.headline()["rows"] == 500


@pytest.mark.parametrize("num_parts", [0, 1])
def test_what_is_not_finished_or_empty_is_said(tmp_path: Path, num_parts: int) -> None:
    write_output(tmp_path, "zero-shot-classification", [labels(50)] * num_parts, kept=["text"], is_finished=False)
    report = report_of(tmp_path)
    text = page(report)
    assert "Not finished: this is what is there now" in text
    assert "Speed" not in text
    assert report.headline()["rows"] == 50 * num_parts
    shutil.rmtree(tmp_path)
    finished = report_of(write_output(tmp_path, "summarization", []))
    assert (finished.headline()["rows"], finished.state) == (0, "finished")


def test_money_is_that_of_the_hours(tmp_path: Path) -> None:
    write_output(tmp_path, "zero-shot-classification", [labels(1000)], kept=["text"])
    facts = report_of(tmp_path, price_per_hour=2.5).sections[-3].blocks[0].values
    assert facts["price of the run"] == "2.50"  # it took an hour
    assert facts["price of a million rows"] == "2,500.00"


def test_a_course_has_few_moments_and_all_rows() -> None:
    course = Course()
    unit = Counts(num_rows=10, num_errors=0, num_input_tokens=70, num_output_tokens=5, num_truncated_tokens=0)
    for number in range(5000):
        course.add(0.5 * (number + 1), unit)
    columns = course.columns()
    assert MOST / 3 < len(columns["seconds"]) <= MOST + 1
    assert (columns["seconds"][-1], columns["rows"][-1], columns["input_tokens"][-1]) == (2500.0, 50_000, 350_000)
    for seconds, rows in zip(columns["seconds"], columns["rows"], strict=True):
        assert rows == 20 * seconds  # each moment says what was done until then
    steps = np.diff(columns["seconds"])[:-1]  # the last one ends where the run does
    assert min(steps) >= 0.5 * max(steps)


def test_rates_over_time_add_up(tmp_path: Path) -> None:
    course = {"seconds": (0.0, 10.0, 20.0, 30.0), "rows": (0, 100, 100, 400), "input_tokens": (0, 0, 0, 0)}
    write_output(tmp_path, "zero-shot-classification", [labels(400)], kept=["text"], course=course)
    line = blocks(report_of(tmp_path), Line, "Rows a second")
    assert line.points == ((10.0, 10.0), (20.0, 0.0), (30.0, 30.0))
    assert line.across == "seconds since the start"


def test_seconds_are_told_by_stage_and_by_what_replicas_did(tmp_path: Path) -> None:
    each = [
        {"node": "10.0.0.1", "process_id": 7, "loading": 60.0, "computing": 1900.0, "waiting": 100.0, "overhead": 1.0}
    ]
    each.append({**each[0], "process_id": 8, "computing": 1100.0, "waiting": 500.0})
    write_output(tmp_path, "zero-shot-classification", [labels(10)], kept=["text"], replicas=tuple(each))
    report = report_of(tmp_path)
    stages = {name: (seconds, share) for name, seconds, share in blocks(report, Bars, "Seconds by stage").table.rows}
    assert stages["tokenize"] == (800.0, pytest.approx(800 / 4100))
    assert sum(share for _, share in stages.values()) == pytest.approx(1)
    spent = {name: share for name, _, share in blocks(report, Bars, "Time of 2 replicas").table.rows}
    assert spent["waiting for units"] == 0.15
    assert [row[1] for row in blocks(report, Table, "Replicas that waited longest").rows] == ["8", "7"]


# ------------------------------------------------------------------------------------------------------------- numbers


def test_a_histogram_counts_every_length_once() -> None:
    lengths = [0, 1, 1, 7, 99, 100]
    found = histogram("x", "tokens", lengths)
    assert found is not None
    assert sum(found.counts) == len(lengths)
    assert len(found.edges) == len(found.counts) + 1
    assert (found.median, found.largest) == (4, 100)
    assert found.edges[-2] <= 100 < found.edges[-1]
    assert histogram("x", "tokens", []) is None


def test_a_histogram_has_edges_that_people_count_in() -> None:
    for largest, width in ((5, 1), (31, 1), (128, 5), (1024, 50), (200_000, 5_000)):
        found = histogram("x", "tokens", [0, largest])
        assert found is not None
        assert found.edges[1] == width
        assert len(found.counts) <= 41


def test_a_few_long_values_do_not_hide_the_others() -> None:
    found = histogram("x", "tokens", [*range(1000), 10**6])
    assert found is not None
    assert (found.beyond, found.largest, sum(found.counts)) == (1, 10**6, 1000)
    assert found.edges[-1] < 2000
    assert "1 of the rows lie beyond 1,000 and are not drawn" in cells.caption(found)


@pytest.mark.parametrize("values", [[0.5], [0.0], [-3.0, -3.0], [1e-9, 2e-9], [-1e6, 1e6], [1.0, 1.0 + 1e-7]])
def test_any_values_have_a_histogram(values: list[float]) -> None:
    found = histogram("x", "score", values)
    assert found is not None
    assert sum(found.counts) + found.beyond == len(values)
    assert len(found.counts) <= 42


def test_many_different_texts_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchloom.jobs.reports import numbers

    monkeypatch.setattr(numbers, "MAX_TEXTS", 100)
    tally = Tally()
    for start in range(0, 5000, 50):
        tally.add(pa.chunked_array([[f"once {row}" for row in range(start, start + 50)] + ["often"] * 5]))
    assert len(tally.counts) <= 100
    assert tally.most_common(1) == [("often", 500)]
    assert not tally.is_exact


# --------------------------------------------------------------------------------------------------------------- pages


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """100,000 rows of every kind of text that one would rather not have, some of them errors."""
    folder = tmp_path_factory.mktemp("hostile")
    names = list(HOSTILE.values())
    scores = np.random.default_rng(0).random(50_000).astype(np.float32)
    answers = pa.DictionaryArray.from_arrays(pa.array(np.arange(50_000) % len(names), pa.int32()), pa.array(names))
    offsets = pa.array(np.arange(50_001), pa.int32())
    columns = {
        "id": [f"{names[row % len(names)]}{row}" for row in range(50_000)],
        "text": answers.dictionary_decode(),
        "labels": pa.ListArray.from_arrays(offsets, answers.dictionary_decode()),
        "scores": pa.ListArray.from_arrays(offsets, pa.array(scores)),
        "label": answers.dictionary_decode(),
        "score": pa.array(scores),
    }
    message = " ".join(HOSTILE.values())
    errors = {row: {"stage": "infer", "kind": "not_finite", "message": message} for row in range(0, 50_000, 3)}
    part = table(columns, errors)
    return report_of(write_output(folder, "zero-shot-classification", [part, part], kept=["id", "text"]))


@pytest.fixture(scope="module")
def drawn(hostile: Report) -> str:
    return page(hostile)


def test_a_page_of_many_rows_is_small(hostile: Report, drawn: str) -> None:
    assert hostile.scan.num_rows == 100_000
    assert len(drawn.encode()) < 1_000_000
    assert len(markdown(hostile).encode()) < 200_000


class Elements(HTMLParser):
    """The elements of a page, and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_nothing_in_a_page_steers_or_loads(drawn: str) -> None:
    elements = Elements()
    elements.feed(drawn)
    assert not {"script", "img", "iframe", "object", "embed", "form", "a", "base"} & {tag for tag, _ in elements.found}
    names = {name for _, attributes in elements.found for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert "src" not in names
    assert [attributes["href"] for _, attributes in elements.found if "href" in attributes] == ["data:,"]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x08\x0b-\x1f]", drawn)
    assert "default-src 'none'" in drawn
    assert not re.search(r"url\((?!#clip\d+\))", drawn)  # a plot's own frame
    assert "@import" not in drawn
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_markdown_takes_no_markup_from_data(hostile: Report) -> None:
    from markdown_it import MarkdownIt

    parsed = MarkdownIt("commonmark", {"linkify": False}).enable("table").parse(markdown(hostile))
    children = [child for token in parsed for child in token.children or ()]
    kinds = {child.type for child in children}
    assert not kinds & {"link_open", "image", "html_inline", "code_inline", "em_open"}
    assert "html_block" not in {token.type for token in parsed}
    rows = [token for token in parsed if token.type == "tr_open"]
    assert len(rows) > 20
    text = "".join(child.content for child in children)
    assert "[click](http://tracker.example/) `code` | pipe" in text


def plain(text: str) -> str:
    return re.sub(r"\\([\\`*_\[\]<>#|~&$:.])", r"\1", text)


def test_the_page_and_markdown_have_equal_figures(hostile: Report, drawn: str) -> None:
    written = plain(markdown(hostile))
    shown = html.unescape(drawn)
    num_cells = 0
    for section in hostile.sections:
        for block in section.blocks:
            if isinstance(block, Facts):
                wanted = [cells.text(value) for value in block.values.values()]
            elif isinstance(block, Table | Bars | Histogram | Line):
                told = block if isinstance(block, Table) else table_of(block)
                wanted = [cells.short(cell) for row in told.rows for cell in row]
            else:
                continue
            num_cells += len(wanted)
            for cell in wanted:
                assert f">{cell}</" in shown, (section.title, cell)
                assert f" {cell} |" in written or f": {cell}\n" in written, (section.title, cell)
    assert num_cells > 100


def test_no_card_leaves_half_of_a_row_empty() -> None:
    """A lonely card had an empty half beside it: it takes both columns, and the next ones go in pairs again."""
    from batchloom.jobs.reports.pages.page import _places

    card, table, wide = Facts({}), Table("", ("a",), ()), Table("", ("a", "b", "c", "d"), ())
    samples = Samples("", ())
    for section, expected in [
        ([card], ["full alone"]),
        ([card, table], ["", ""]),
        ([card, table, card], ["", "", "full alone"]),
        ([card, wide, samples], ["full alone", "full", "full"]),
        ([wide, card, card, wide, card], ["full", "", "", "full", "full alone"]),
        ([], []),
    ]:
        assert list(_places(section)) == expected


def test_plots_may_draw_beyond_their_frame(drawn: str) -> None:
    """Labels at an axis' end were cut in fonts that are wider than the one that plots are laid out by."""
    assert re.search(r"\.plot svg {[^}]*overflow: visible", drawn)


def test_every_plot_is_described_and_every_table_has_a_header(drawn: str) -> None:
    plots = re.findall(r"<svg ([^>]*)>", drawn)
    assert len(plots) >= 4
    for attributes in plots:
        assert re.search(r'role="img" aria-label="(Bar|Line|Histogram)[^"]{20,}"', attributes)
    assert drawn.count("<table") == drawn.count("<thead>")
    assert re.findall(r"<th [^>]*>", drawn) == re.findall(r'<th scope="col"[^>]*>', drawn)
    assert '<html lang="en">' in drawn


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", ["LIGHT", "DARK"])
def test_text_can_be_read_in_both_modes(mode: str) -> None:
    from batchloom.jobs.reports.pages import style

    colours = dict(re.findall(r"--(\w+): (#\w+)", getattr(style, mode)))
    for ink, paper in [(ink, paper) for ink in ("ink", "soft", "bad") for paper in ("paper", "ground", "tint")]:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
    light, dark = sorted((luminance(colours["fill"]), luminance(colours["paper"])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3.0


MEASURE = """
<iframe id=page width=375 height=800 src="report.html"></iframe><script>
const frame = document.getElementById("page")
frame.onload = () => {
  const inner = frame.contentDocument, width = inner.documentElement.clientWidth
  inner.querySelectorAll("details").forEach(one => { one.open = true })
  const beyond = [...inner.querySelectorAll("main *")].filter(one => {
    const box = one.getBoundingClientRect()
    return box.width > 1 && !one.closest("thead") && (box.right > width + 1 || box.left < -1)
  })
  const told = beyond.slice(0, 5).map(one => one.outerHTML.slice(0, 80))
  document.title = JSON.stringify([inner.documentElement.scrollWidth, width, told])
}
</script>
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here to show the page")
def test_a_phone_shows_all_of_a_page(drawn: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(drawn)
    (tmp_path / "measure.html").write_text(MEASURE)
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
    )
    where = (f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom")
    command = [str(CHROMIUM), *options, *where, (tmp_path / "measure.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1])  # type: ignore[index]
    scroll, width, beyond = json.loads(title)
    assert beyond == []
    assert scroll == width
    assert "CONSOLE" not in done.stderr


def test_a_report_is_made_without_torch_and_ray(tmp_path: Path) -> None:
    folder = write_output(tmp_path / "out", "zero-shot-classification", [labels(20)], kept=["text"])
    probe = (
        "import atexit, sys\n"
        f"sys.argv = ['batchloom', 'report', {str(folder)!r}, '--html', {str(tmp_path / 'r.html')!r}]\n"
        "from batchloom.jobs.cli import main\n"
        "atexit.register(lambda: print(*{'torch', 'ray'} & set(sys.modules), file=sys.stderr))\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert os.stat(tmp_path / "r.html").st_mode & 0o077 == 0  # texts of the output are its owner's


def test_without_the_plotting_library_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchloom.pipelines.errors import ConfigError

    monkeypatch.setitem(sys.modules, "vl_convert", None)
    report = report_of(write_output(tmp_path, "zero-shot-classification", [labels(20)], kept=["text"]))
    with pytest.raises(ConfigError, match=r"pip install 'batchloom\[report\]'"):
        page(report)
    assert "| sports |" in markdown(report)
