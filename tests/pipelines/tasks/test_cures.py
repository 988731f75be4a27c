"""What a user is told to do about rows with errors."""

import pytest

from batchloom.pipelines.errors import ADVICE
from batchloom.pipelines.tasks import TASKS
from batchloom.pipelines.tasks.cures import advice, own_options

CURES = TASKS["summarization"].cures
COMMAND = "--retry-errors=too_long --set task_options.long_documents=chunk"


@pytest.mark.parametrize(
    ("errors", "options", "begins", "names_command"),
    [
        ({"too_long": 37, "null_text": 2}, {}, "too_long: ", True),
        ({"too_long": 37}, {"long_documents": "error"}, "too_long: ", True),
        ({"too_long": 1, "null_text": 2}, {}, "null_text: ", False),
        ({"null_text": 2, "too_long": 2}, {}, "too_long: ", True),
        ({"empty_text": 2, "null_text": 2, "too_long": 0}, {}, "empty_text: ", False),
        ({"too_long": 3}, {"long_documents": "chunk"}, "too_long: ", False),
        ({"of_a_newer_version": 3}, {}, "of_a_newer_version: the column error says more.", False),
    ],
)
def test_the_largest_kind_of_error_has_an_advice(errors, options, begins, names_command):
    said = advice(errors, CURES, options)
    assert said.startswith(begins)
    assert (COMMAND in said) == names_command


def test_without_errors_there_is_no_advice():
    assert advice({}, CURES, {}) is None
    assert advice({"too_long": 0}, CURES, {}) is None


@pytest.mark.parametrize("task", TASKS)
def test_a_cure_is_an_option_of_its_task_and_of_a_known_error(task):
    for cure in TASKS[task].cures:
        assert cure.kind in ADVICE
        assert advice({cure.kind: 1}, [cure], {}) is not None


def test_options_concern_errors_alone_only_where_these_were_errors_before():
    """merge decides nothing as long as no text is in chunks, and answers from then on."""
    before = {"long_documents": "error", "merge": "join", "prefix": ""}
    assert own_options(CURES, ["too_long"], before) == {"long_documents", "merge"}
    assert own_options(CURES, [], before) == {"long_documents", "merge"}
    assert own_options(CURES, ["null_text"], before) == set()
    assert own_options(CURES, [], {**before, "long_documents": "chunk"}) == set()
