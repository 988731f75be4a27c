"""A replica answers every request: with what the model said, or with the reason why it said nothing."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pyarrow as pa
import pytest

from batchloom.models import EngineStats, GenerationParams, RequestOutput, SequenceOutput
from batchloom.models.errors import RequestError
from batchloom.models.generation.requests import NoAnswer
from batchloom.models.single_pass.single_pass import SinglePassStats
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.copies import is_copy
from batchloom.pipelines.replicas.engine import EngineReplica, row_seed
from batchloom.pipelines.replicas.results import RESULT_SCHEMA, not_finite
from batchloom.pipelines.replicas.single_pass import SinglePassReplica
from batchloom.pipelines.stages.tokenize import in_buckets
from batchloom.pipelines.tasks.base import TARGET_LENGTHS, request_table
from batchloom.pipelines.telemetry.measures import Increments

UNIT = Unit("part", ((0, 10),), (Span("shard", "v", 10, 20),), is_whole=True)


class SmallDevice:
    """Counts tokens, and has memory for so many of one request; records the batches that it computes."""

    def __init__(self, room, error=MemoryError):
        self.room, self.error, self.batches = room, error, []
        self.stats = SinglePassStats()
        self._changing = threading.Lock()

    def check(self, token_ids):
        if 99 in token_ids:
            raise RequestError("99 is no token")

    def check_targets(self, token_ids, targets):
        self.check([*token_ids, *chain(*targets)])

    def count(self, token_ids):
        with self._changing:
            self.batches.append([list(ids) for ids in token_ids])
        if any(len(ids) > self.room for ids in token_ids):
            raise self.error("no memory")
        with self._changing:
            self.stats = self.stats.plus(sum(map(len, token_ids)), sum(map(len, token_ids)) + 1)
        return [float(len(ids)) for ids in token_ids]


class Counting:
    """A task that asks for the number of tokens."""

    def ask(self, model, token_ids):
        return {"values": pa.array([[count] for count in model.count(token_ids)], pa.list_(pa.float32()))}


def bucketed(asked, max_batch_tokens=100):
    return in_buckets(request_table(asked), max_batch_tokens)


REQUESTS = bucketed([(2, 0, [1, 2]), (0, 1, [1]), (0, 0, [1, 2, 3]), (1, 0, [99]), (3, 0, [1] * 9)])


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
    assert [len(batch) for batch in device.batches] == [4, 2, 1, 1, 2]


class CountingTargets(Counting):
    """A task that asks for the number of tokens of each target, all of one source at once."""

    def ask_targets(self, model, sources, targets):
        model.count([[*source, *chain(*own)] for source, own in zip(sources, targets, strict=True)])
        return {"values": pa.array([[len(one) for one in own] for own in targets], pa.list_(pa.float32()))}


def with_targets(*lengths):
    """One request: a source of 3 tokens, and targets."""
    asked = request_table([(0, 0, [1] * (3 + sum(lengths)))])
    return in_buckets(asked.append_column(TARGET_LENGTHS, pa.array([lengths], TARGET_LENGTHS.type)), 100)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_targets_without_room_beside_each_other_are_scored_in_halves(num_workers):
    """A row of many targets was an error, however short they were."""
    device = SmallDevice(7)
    replica = SinglePassReplica(device, CountingTargets(), num_workers=num_workers)
    results = replica.answer(UNIT, with_targets(2, 1, 4, 1, 1))
    assert results["values"].to_pylist() == [[2.0, 1.0, 4.0, 1.0, 1.0]]
    assert results["error"].null_count == 1
    sizes = [len(ids) for batch in device.batches for ids in batch]
    assert sizes[num_workers > 1 :] == [12, 6, 9, 7, 5]  # all of them once more where other workers had stopped
    (error,) = replica.answer(UNIT, with_targets(2, 5))["error"].to_pylist()
    assert error["message"] == "10 tokens do not fit into memory. Shorten the text, or its longest target."


def test_another_failure_is_not_swallowed():
    with pytest.raises(RuntimeError, match="no memory"):
        SinglePassReplica(SmallDevice(3, RuntimeError), Counting()).answer(UNIT, REQUESTS)


def test_a_request_longer_than_the_job_allows_is_refused():
    results = SinglePassReplica(SmallDevice(100), Counting(), max_request_tokens=8).answer(UNIT, REQUESTS)
    assert "engine.max_batch_tokens is 8" in results["error"][4]["message"].as_py()
    assert results["values"].null_count == 2


def test_nothing_asked_is_nothing_answered():
    assert SinglePassReplica(SmallDevice(3), Counting()).answer(UNIT, bucketed([])).num_rows == 0


def test_seconds_are_told_once():
    replica = SinglePassReplica(SmallDevice(100), Counting())
    replica.answer(UNIT, REQUESTS)
    increments = Increments(lambda: replica.activity().measures())
    first, second = increments.take(), increments.take()
    assert (first["engine_prompt_tokens"], second["engine_prompt_tokens"]) == (15, 0)
    assert first["engine_padded_tokens"] == 16
    assert first["engine_busy_seconds"] > second["engine_busy_seconds"] == 0


ASKED = [(row, 0, [row % 7 + 1] * (row * 7 % 30 + 1)) for row in range(40)]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_buckets_of_tokenize_are_the_batches_that_are_computed(num_workers):
    device, requests = SmallDevice(100), bucketed(ASKED)
    SinglePassReplica(device, Counting(), num_workers=num_workers).answer(UNIT, requests)
    buckets = {}
    for bucket, ids in zip(requests["bucket"].to_pylist(), requests["token_ids"].to_pylist(), strict=True):
        buckets.setdefault(bucket, []).append(ids)
    assert len(buckets) > 3
    assert sorted(device.batches) == sorted(buckets.values())


@pytest.mark.parametrize("num_workers", [1, 3])
def test_units_in_flight_are_answered_as_each_alone(num_workers):
    units = [bucketed(ASKED[first::4]) for first in range(4)]
    alone = [SinglePassReplica(SmallDevice(20), Counting()).answer(UNIT, requests) for requests in units]
    replica = SinglePassReplica(SmallDevice(20), Counting(), num_workers=num_workers)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda requests: replica.answer(UNIT, requests), units))
    assert together == alone
    assert any(result["error"].null_count < result.num_rows for result in alone)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_failing_batch_fails_its_own_unit_and_the_replica_goes_on(num_workers):
    replica = SinglePassReplica(SmallDevice(20, RuntimeError), Counting(), num_workers=num_workers)
    good, bad = bucketed([(row, 0, [1] * 5) for row in range(60)]), bucketed([(0, 0, [1] * 30), *ASKED[1:]])
    with ThreadPoolExecutor(3) as pool:
        first, broken, last = [pool.submit(replica.answer, UNIT, requests) for requests in (good, bad, good)]
        with pytest.raises(RuntimeError, match="no memory"):
            broken.result()
        assert first.result() == last.result()
    assert first.result()["values"].to_pylist() == [[5.0]] * 60


def test_a_request_without_room_beside_other_workers_is_computed_alone():
    meeting, is_crowded = threading.Barrier(2), threading.local()

    class Crowded(SmallDevice):
        """Two batches meet; that of nine tokens then has no room beside the other."""

        def count(self, token_ids):
            if not hasattr(is_crowded, "was"):
                is_crowded.was = True
                meeting.wait(timeout=60)
                if len(token_ids[0]) == 9:
                    raise MemoryError
            return super().count(token_ids)

    replica = SinglePassReplica(Crowded(100), Counting(), num_workers=2)
    results = replica.answer(UNIT, bucketed([(0, 0, [1] * 9), (1, 0, [1] * 8)], max_batch_tokens=9))
    assert results["values"].to_pylist() == [[9.0], [8.0]]


def test_a_seed_belongs_to_the_row_and_its_piece_wherever_the_unit_begins():
    assert row_seed(0, UNIT, 5, 1) == row_seed(
        0, Unit("other", ((7, 12),), (Span("shard", "v", 15, 20),), is_whole=False), 0, 1
    )
    assert len({row_seed(0, UNIT, 5), row_seed(0, UNIT, 6), row_seed(0, UNIT, 5, 1), row_seed(1, UNIT, 5)}) == 4


class SmallEngine:
    """Answers a request with its own tokens, or says that it has no room."""

    stats = EngineStats()

    def __init__(self, room):
        self.room, self.waiting = room, []

    @property
    def num_unfinished(self):
        return len(self.waiting)

    def add(self, key, token_ids, params, seed, answer_prefix):  # noqa: ARG002
        self.waiting.append((key, token_ids))

    def step(self):
        key, ids = self.waiting.pop()
        if len(ids) > self.room:
            return [RequestOutput(key, len(ids), [], NoAnswer("out_of_memory", "no room for it"))]
        return [RequestOutput(key, len(ids), [SequenceOutput(ids, 0.0, "length")])]


def test_an_engine_without_room_for_one_request_gives_that_row_an_error():
    requests = bucketed([(0, 0, [1, 2]), (1, 0, [1] * 9), (2, 0, [3])])
    results = EngineReplica(SmallEngine(3), GenerationParams(), 0).answer(UNIT, requests)
    assert results["token_ids"].to_pylist() == [[1, 2], None, [3]]
    assert results["error"].to_pylist() == [
        None,
        {"stage": "infer", "kind": "out_of_memory", "message": "no room for it"},
        None,
    ]


class Scripted:
    """An engine that answers every request with what its first token stands for."""

    def __init__(self, answers):
        self.answers, self.waiting, self.stats = answers, [], EngineStats()

    @property
    def num_unfinished(self):
        return len(self.waiting)

    def add(self, key, token_ids, params, seed, answer_prefix):  # noqa: ARG002
        self.waiting.append((key, token_ids))

    def step(self):
        (key, token_ids), self.waiting = self.waiting[0], self.waiting[1:]
        answer = self.answers[token_ids[0]]
        if isinstance(answer, NoAnswer):
            return [RequestOutput(key, 1, [], answer)]
        return [RequestOutput(key, 1, [SequenceOutput([5, 6], answer, "eos")])]


def test_what_is_not_finite_is_an_error_that_says_where():
    answers = {1: -1.5, 2: NoAnswer("not_finite", "The logits of new token 3"), 3: -math.inf, 4: math.nan}
    replica = EngineReplica(Scripted(answers), GenerationParams(), 0)
    requests = bucketed([(row, 0, [token]) for row, token in enumerate(answers)])
    errors = replica.answer(UNIT, requests)["error"].to_pylist()
    assert [error and error["kind"] for error in errors] == [None, "not_finite", "not_finite", "not_finite"]
    assert errors[1]["message"] == "The logits of new token 3"
    assert "score is -inf: options banned every token" in errors[2]["message"]


MARKS = frozenset({0, 1, 2})


@pytest.mark.parametrize(
    ("prompt", "answer", "is_one"),
    [
        ([0, 7, 8, 2], [0, 7, 8, 2], True),
        ([0, 7, 8, 2], [7, 8], True),
        ([7, 8], [7, 8, 9], False),
        ([7, 8, 9], [7, 8], False),
        ([*range(10, 18)], [*range(10, 18), 5, 2], True),
        ([0, 2], [2], False),
    ],
    ids=["all", "without marks", "short and goes on", "the beginning alone", "long and goes on", "nothing"],
)
def test_a_copy_says_what_its_prompt_says(prompt, answer, is_one):
    assert is_copy(prompt, answer, MARKS) == is_one


@pytest.mark.parametrize(
    ("answer_prefix", "answer", "is_one"),
    [
        ([7, 8], [9, 10, 2], True),
        ([5, 6], [7, 8, 9, 10, 2], True),
        ([7, 8], [5, 6], False),
        ([7, 8, 9, 10], [5, 6, 2], False),
        ([7, 8, 9, 10], [7, 8, 9, 10, 2], True),
        ([7, 8, 9, 10], [2], False),
    ],
    ids=["goes on to a copy", "a copy behind it", "none", "the prompt, and goes on", "the prompt twice", "the prompt"],
)
def test_what_an_answer_was_made_to_begin_with_is_no_copy_by_itself(answer_prefix, answer, is_one):
    assert is_copy([7, 8, 9, 10], answer, MARKS, answer_prefix) == is_one


@pytest.mark.parametrize("kind", [pa.float32(), pa.list_(pa.float32()), pa.list_(pa.struct([("score", pa.float32())]))])
def test_values_that_are_not_finite_are_found_inside_of_lists_and_structs(kind):
    values = [0.5, None, math.nan, 1.5, math.inf, -math.inf, 2.0]
    if pa.types.is_list(kind):
        inner = [None if value is None else [1.0, value] for value in values]
        is_struct = pa.types.is_struct(kind.value_type)
        values = [own and [{"score": one} if is_struct else one for one in own] for own in inner]
    expected = [False, False, True, False, True, True, False]
    assert not_finite(pa.array(values, kind)).tolist() == expected
    assert not_finite(pa.chunked_array([pa.array(values, kind)] * 2)).tolist() == expected * 2
    assert not_finite(pa.array([], kind)).tolist() == []
