"""Every task's replica on a GPU that is none: the answers that the CPU gives, and few waits."""

import math

import pytest

from batchloom import models
from batchloom.pipelines.tasks import TASKS
from tests.pipelines.tasks.test_jobs import SHORT, rows
from tests.pretend_gpu import pretending

COLUMNS = {"question-answering": {"question_column": "question", "context_column": "context"}}
OPTIONS = {
    "zero-shot-classification": {"candidate_labels": ["river", "garden"]},
    "scoring": {"target_column": "title"},
    "feature-extraction": {"pooling": ["mean", "cls"]},
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_answers_on_a_gpu_as_on_a_cpu(ask, model_of, make_sentences, guard_folder, monkeypatch, task) -> None:
    columns = rows(make_sentences, task)
    columns["text"] = columns["headline"] if task == "fill-mask" else columns["text"]
    asked = {
        "options": OPTIONS.get(task, {}),
        "generation": SHORT if "generation" in task or task in ("summarization", "conversational") else {},
        **COLUMNS.get(task, {"text_column": "text"}),
    }
    model = model_of(task)
    expected = ask(task, model, columns, device="cpu", **asked)
    with pretending(guard_folder) as gpu:
        load = models.load_model

        def load_and_forget(*arguments):
            loaded = load(*arguments)
            gpu.forget()
            return loaded

        monkeypatch.setattr(models, "load_model", load_and_forget)
        found = ask(task, model, columns, device="cuda", **asked)
    assert near(found.to_pylist(), expected.to_pylist())
    assert expected["error"].null_count >= expected.num_rows - 2  # one is null, one too long to summarize
    waits = dict(gpu.waits)
    num_downloads = waits.pop("a download")
    if asked["generation"]:  # one a step, and one for what was said
        assert (num_downloads, waits) == (SHORT["max_new_tokens"] + 1, {})
    else:  # of one batch: where sequences end, before it is computed, and the answers, by column
        assert num_downloads <= 2
        assert waits == {"torch.cuda.synchronize": 1}  # the weights are there


def near(one, other) -> bool:
    """Floats to three digits: batches are others there, and float32 adds up in another order."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3) if isinstance(one, float) else one == other
