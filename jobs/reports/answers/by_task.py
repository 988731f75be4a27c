"""Which kind of answers a task has."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchloom.jobs.reports.answers.base import Answers, Nothing
from batchloom.jobs.reports.answers.choices import Choices
from batchloom.jobs.reports.answers.classes import Classes, Fills
from batchloom.jobs.reports.answers.entities import Entities
from batchloom.jobs.reports.answers.perplexities import Perplexities
from batchloom.jobs.reports.answers.spans import Spans
from batchloom.jobs.reports.answers.texts import Texts
from batchloom.jobs.reports.answers.vectors import Vectors
from batchloom.jobs.reports.view import section

TEXT_COLUMN = {
    "summarization": "summary_text",
    "text-generation": "generated_text",
    "text2text-generation": "generated_text",
    "conversational": "reply",
}


def answers_of(job: Mapping[str, Any], kept: Collection[str] = ()) -> Answers:
    """Return what adds up the answers of a job's task. `kept`: columns that are the input's."""
    task, options = job["task"], section(job, "task_options")
    if task in TEXT_COLUMN:
        return Texts(TEXT_COLUMN[task])
    if task == "zero-shot-classification":
        best = {"label": pa.string(), "score": pa.float32()}
        whole = {"labels": pa.list_(pa.string()), "scores": pa.list_(pa.float32())}
        above = {} if options.get("threshold") is None else {"labels_above": pa.list_(pa.string())}
        return Classes((whole if set(kept) & set(best) else best) | above)
    if task == "text-classification":
        score = pa.struct([("label", pa.string()), ("score", pa.float32())])
        return Classes({"label": pa.string(), "scores": pa.list_(score)})
    if task == "scoring" and options.get("targets_column") is not None:
        return Choices()
    if task == "feature-extraction":
        return _vectors(options.get("pooling", "mean"))
    simple: Mapping[str, type[Answers]] = {
        "token-classification": Entities,
        "question-answering": Spans,
        "fill-mask": Fills,
        "perplexity": Perplexities,
        "scoring": Perplexities,
    }
    return simple.get(task, Nothing)()


def _vectors(pooling: str | Sequence[str]) -> Answers:
    """Return what adds up the first column that has a vector for each row; states of each token are none."""
    if isinstance(pooling, str):
        return Nothing() if pooling == "none" else Vectors("embedding")
    column = next((f"embedding_{one}" for one in pooling if one != "none"), None)
    return Nothing() if column is None else Vectors(column)
