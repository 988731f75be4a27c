"""A replica answers every request: with what the model said, or with the reason why it said nothing."""

import pyarrow as pa
import pytest

from batchloom.models import EngineStats, RequestOutput, SequenceOutput
from batchloom.models.errors import RequestError
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.engine import EngineReplica, row_seed
from batchloom.pipelines.replicas.results import RESULT_SCHEMA
from batchloom.pipelines.replicas.single_pass import SinglePassReplica
from batchloom.pipelines.tasks.base import request_table

UNIT = Unit("shard", "shard", 10, 20, "unit")


class SmallDevice:
    """Counts tokens, and has memory for so many of one request."""

    def __init__(self, room, error=MemoryError):
        self.room, self.error, self.calls = room, error, []

    def check(self, token_ids):
        if 99 in token_ids:
            raise RequestError("99 is no token")

    def count(self, token_ids):
        self.calls.append(len(token_ids))
        if any(len(ids) > self.room for ids in token_ids):
            raise self.error("no memory")
        return [float(len(ids)) for ids in token_ids]


class Counting:
    """A task that asks for the number of tokens."""

    def ask(self, model, token_ids):
        return {"values": pa.array([[count] for count in model.count(token_ids)], pa.list_(pa.float32()))}


REQUESTS = request_table([(2, 0, [1, 2]), (0, 1, [1]), (0, 0, [1, 2, 3]), (1, 0, [99]), (3, 0, [1] * 9)])


def test_answers_come_in_the_order_of_rows_and_pieces():
    results = SinglePassReplica(SmallDevice(100), Counting()).answer(UNIT, REQUESTS)
    assert results.schema == RESULT_SCHEMA
    assert results["row"].to_pylist() == [0, 0, 1, 2, 3]
    assert results["piece"].to_pylist() == [0, 1, 0, 0, 0]
    assert results["values"].to_pylist() == [[3.0], [1.0], None, [2.0], [9.0]]
    assert results["error"][2]["kind"].as_py() == "refused_request"


def test_a_request_that_alone_has_no_room_is_an_error_and_the_others_are_answered():
    device = SmallDevice(3)
    results = SinglePassReplica(device, Counting()).answer(UNIT, REQUESTS)
    assert results["values"].to_pylist() == [[3.0], [1.0], None, [2.0], None]
    assert results["error"][4].as_py() == {
        "stage": "infer",
        "kind": "out_of_memory",
        "message": "9 tokens do not fit into memory. Shorten the text.",
    }
    assert device.calls == [4, 2, 2, 1, 1]


def test_another_failure_is_not_swallowed():
    with pytest.raises(RuntimeError, match="no memory"):
        SinglePassReplica(SmallDevice(3, RuntimeError), Counting()).answer(UNIT, REQUESTS)


def test_a_request_longer_than_the_job_allows_is_refused():
    results = SinglePassReplica(SmallDevice(100), Counting(), max_request_tokens=8).answer(UNIT, REQUESTS)
    assert "engine.max_batch_tokens is 8" in results["error"][4]["message"].as_py()
    assert results["values"].null_count == 2


def test_nothing_asked_is_nothing_answered():
    assert SinglePassReplica(SmallDevice(3), Counting()).answer(UNIT, request_table([])).num_rows == 0


def test_seconds_are_told_once():
    replica = SinglePassReplica(SmallDevice(100), Counting())
    replica.answer(UNIT, REQUESTS)
    assert replica.measures()["engine_prompt_tokens"] == 15
    assert replica.measures()["engine_prompt_tokens"] == 0


def test_a_seed_belongs_to_the_row_and_its_piece_wherever_the_unit_begins():
    assert row_seed(0, UNIT, 5, 1) == row_seed(0, Unit("shard", "shard", 15, 20, "other"), 0, 1)
    assert len({row_seed(0, UNIT, 5), row_seed(0, UNIT, 6), row_seed(0, UNIT, 5, 1), row_seed(1, UNIT, 5)}) == 4


class SmallEngine:
    """Answers a request with its own tokens, or says that it has no room."""

    stats = EngineStats()

    def __init__(self, room):
        self.room, self.waiting = room, []

    @property
    def num_unfinished(self):
        return len(self.waiting)

    def add(self, key, token_ids, params, seed):  # noqa: ARG002
        self.waiting.append((key, token_ids))

    def step(self):
        key, ids = self.waiting.pop()
        if len(ids) > self.room:
            return [RequestOutput(key, len(ids), [], "no room for it")]
        return [RequestOutput(key, len(ids), [SequenceOutput(ids, 0.0, "length")])]


def test_an_engine_without_room_for_one_request_gives_that_row_an_error():
    requests = request_table([(0, 0, [1, 2]), (1, 0, [1] * 9), (2, 0, [3])])
    results = EngineReplica(SmallEngine(3), None, 0).answer(UNIT, requests)
    assert results["token_ids"].to_pylist() == [[1, 2], None, [3]]
    assert results["error"].to_pylist() == [
        None,
        {"stage": "infer", "kind": "out_of_memory", "message": "no room for it"},
        None,
    ]
