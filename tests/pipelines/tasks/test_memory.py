"""Long texts: what tasks hold for each token. Python's objects and numpy's arrays are counted."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from batchloom import models
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.replicas.results import result_table
from batchloom.pipelines.tasks import TaskSpec, create_task
from batchloom.pipelines.tasks.base import Answered

TASKS = {  # options, and the bytes that a token of the text takes at most: those of its windows overlap
    "token-classification": ({"ignore_labels": ["LABEL_0"]}, 100),  # what is no entity
    "question-answering": ({}, 150),
    "perplexity": ({}, 40),
    "zero-shot-classification": ({"candidate_labels": ["a", "b"]}, 40),
}


@pytest.fixture(params=TASKS)
def prepared(request, model_of, make_sentences):
    """A task and its name, its tokenizer, what it prepares of a text, and the bytes that this took for each token."""
    checkpoint = models.describe(model_of(request.param), task=request.param)
    columns = InputConfig(paths=(), text_column="text", question_column="question", context_column="text")
    task = create_task(
        TaskSpec(
            task=request.param, input=columns, options=TASKS[request.param][0], generation={}, checkpoint=checkpoint
        )
    )
    tokenizer = models.load_tokenizer(checkpoint.pinned)
    text = " ".join(make_sentences(4000, seed=5))
    given = {"text": text, "question": "Where is the river?"}
    columns = [pa.chunked_array([[given[name]]]) for name in task.input_columns()]
    num_tokens = len(tokenizer.encode_batch([text])[0])
    tracemalloc.start()
    found = task.prepare(columns, tokenizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return request.param, task, tokenizer, found, peak / num_tokens


def test_a_token_takes_bytes_and_not_objects(prepared):
    """Lists took 250 and 410 bytes for each token of a unit, of which there may be five million; 50 where ids alone are
    held."""
    name, task, tokenizer, found, bytes_a_token = prepared
    assert bytes_a_token < TASKS[name][1]
    if found.notes is None:
        return
    lengths = [len(ids) for ids in found.requests["token_ids"]]
    width = {"question-answering": 2, "token-classification": 3}.get(name, 1)
    values = pa.array([np.zeros(width * length, np.float32) for length in lengths], pa.list_(pa.float32()))
    numbers = [found.requests[name].combine_chunks() for name in ("row", "piece")]
    results = result_table(*numbers, values=values)
    tracemalloc.start()
    task.finish(Answered(results, 1, found.notes), tokenizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / sum(lengths) < 60
