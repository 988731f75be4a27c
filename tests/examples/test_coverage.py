"""docs/coverage.md leaves out nothing of the families' pages, and names tests that exist."""

import inspect
import re
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/coverage.md").read_text()
FAMILIES = ("Bart", "Blenderbot", "BlenderbotSmall", "Bloom")
HEADS = (
    "Model",
    "ForConditionalGeneration",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
NAMED = set(re.findall(r"`([\w.]+)`", PAGE))
OF_PYTHON = {"self", "kwargs"}


def classes(family: str) -> list[type]:
    return [found for head in HEADS if (found := getattr(transformers, f"{family}{head}", None)) is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_is_there(family: str) -> None:
    assert {kind.__name__ for kind in classes(family)} <= NAMED


@pytest.mark.parametrize("family", FAMILIES)
def test_every_argument_of_a_forward_is_there(family: str) -> None:
    arguments = {name for kind in classes(family) for name in inspect.signature(kind.forward).parameters}
    assert arguments - OF_PYTHON <= NAMED


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_is_there(family: str) -> None:
    assert set(getattr(transformers, f"{family}Config")().to_dict()) <= NAMED


def test_every_option_of_generate_is_there() -> None:
    assert {name for name in vars(transformers.GenerationConfig()) if name != "_from_model_config"} <= NAMED


def test_every_row_has_a_test_that_exists_or_says_no() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| capability")]
    assert len(rows) > 50
    for row in rows:
        tests = re.findall(r"`(tests/[\w/.]+?)(?:::(\w+))?`", row)
        assert tests or "no:" in row, row
        for path, function in tests:
            assert (ROOT / path).is_file(), path
            assert not function or f"def {function}(" in (ROOT / path).read_text(), function
