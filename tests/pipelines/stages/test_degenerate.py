"""Answers that are degenerate are counted by rows, each in the first kind that holds."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from batchloom.pipelines.counts import Counts
from batchloom.pipelines.fields import ERROR_TYPE
from batchloom.pipelines.replicas.results import result_table
from batchloom.pipelines.stages.degenerate import degenerate, repeats

END = 2


@pytest.mark.parametrize(
    ("tokens", "repeating"),
    [
        ([], False),
        ([END], False),
        ([7] * 8, True),
        ([7] * 8 + [END, END], True),
        ([7] * 7, False),
        ([5, 6, 7, 8] * 4, True),
        ([5, 6, 7, 8] * 3, False),
        ([5, 6, 7, 8] * 3 + [5, 6, 7], False),
        ([5, 6, 7, 8] * 4 + [5, 6], True),
        ([*range(10, 26), *[5, 6, 7, 8] * 4], True),
        ([*range(10, 27), *[5, 6, 7, 8] * 4], False),
        ([*[5, 6, 7, 8] * 4, 9, 10], False),
        ([*range(10, 42)] * 4, True),
        ([*range(10, 43)] * 4, False),
    ],
)
def test_an_answer_repeats_where_its_end_is_one_n_gram_again_and_again(tokens, repeating):
    """Four times, eight tokens, half of the answer; beside lists that are longer, shorter and empty."""
    lists = pa.array([[3] * 9, tokens, [], [*range(10, 200)]], pa.list_(pa.int32()))
    assert repeats(lists, [END]).tolist() == [True, repeating, False, False]
    assert repeats(lists.slice(1, 1), [END]).tolist() == [repeating]
    assert repeats(lists.slice(0, 0), [END]).tolist() == []


def part_of(texts, errors=()):
    """A part with these answers, and errors in some of its rows."""
    error = {"stage": "infer", "kind": "any", "message": ""}
    column = pa.array([error if row in errors else None for row in range(len(texts))], ERROR_TYPE)
    return pa.table({"generated_text": pa.array(texts, pa.string()), "error": column})


def task_of(**generation):
    options = {"eos_token_id": END, "max_length": 20, **generation}
    field = pa.field("generated_text", pa.string())
    return SimpleNamespace(
        generation=options, architecture="BartForConditionalGeneration", output_fields=lambda: [field]
    )


def counted(results, answer_of, part, task):
    """What is counted of answers without a prefix, for which no tokenizer is asked."""
    return degenerate(results, answer_of, part, task, tokenizer=None)


TOKENS = [[END], [5, 6, END], [9] * 12, [5] * 18 + [6, END], [5, 6]]
RESULTS = result_table(
    row=list(range(5)),
    piece=[0] * 5,
    token_ids=pa.array(TOKENS, pa.list_(pa.int32())),
    is_copy=[True, True, False, False, None],
    finish_reason=["eos", "eos", "length", "eos", "eos"],
)


def test_a_row_is_counted_once_and_a_truncated_one_beside_it():
    """Rows 0 and 5 have one answer, row 6 an error though its equal is answered."""
    part = part_of([" \n", "a b", "c c c", "long", "fine", "", "a b"], errors=[6])
    answer_of = pa.array([0, 1, 2, 3, 4, 0, 1], pa.int32())
    counts = counted(RESULTS, answer_of, part, task_of())
    assert counts == {"empty": 2, "copied": 1, "repeating": 1, "truncated": 1}
    # A forced end has the reason of an end token, and stands where the length ends.
    assert counted(RESULTS, answer_of, part, task_of(forced_eos_token_id=END, max_length=21))["truncated"] == 2
    assert counted(RESULTS, answer_of, part, task_of(forced_eos_token_id=END, max_new_tokens=21))["truncated"] == 1


def test_what_an_answer_was_made_to_begin_with_does_not_count():
    """Rows 0 and 1 have a prefix of nine equal tokens, row 2 none, row 3 two pieces, of which the second has a text."""
    tokens, prefixes = [[4, END], [5], [END], [END], [6]], [[9] * 9, [9] * 9, None, [9] * 9, None]
    results = result_table(
        row=[0, 1, 2, 3, 3],
        piece=[0, 0, 0, 0, 1],
        token_ids=pa.array(tokens, pa.list_(pa.int32())),
        answer_prefix=pa.array(prefixes, pa.list_(pa.int32())),
        finish_reason=["eos"] * 5,
    )
    tokenizer = SimpleNamespace(
        decode_batch=lambda lists: ["".join({4: " ", END: ""}.get(t, "x") for t in own) for own in lists]
    )
    part, answer_of = part_of(["nine ", "nine x", "", "nine x"]), pa.array(range(4), pa.int32())
    found = degenerate(results, answer_of, part, task_of(), tokenizer)
    assert found == {"empty": 2, "copied": 0, "repeating": 0, "truncated": 0}
    # max_length counts the start token and the prefix: 11 are full with one token more, and max_new_tokens is not.
    assert (
        degenerate(results, answer_of, part, task_of(forced_eos_token_id=END, max_length=11), tokenizer)["truncated"]
        == 3
    )
    long = task_of(forced_eos_token_id=END, max_new_tokens=2)
    assert degenerate(results, answer_of, part, long, tokenizer)["truncated"] == 1


def test_a_part_without_answers_has_no_degenerate_ones():
    none = {"empty": 0, "copied": 0, "repeating": 0, "truncated": 0}
    assert counted(RESULTS.slice(0, 0), pa.array([0], pa.int32()), part_of([None], errors=[0]), task_of()) == none
    assert counted(RESULTS.slice(0, 0), pa.array([], pa.int32()), part_of([]), task_of()) == none


def test_truncated_answers_do_not_count_for_the_limit():
    tokens = {"num_input_tokens": 1, "num_output_tokens": 1, "num_truncated_tokens": 0}
    counts = Counts(num_rows=1, num_errors=0, **tokens, degenerate={"empty": 1, "repeating": 2, "truncated": 4})
    assert counts.num_degenerate == 3
