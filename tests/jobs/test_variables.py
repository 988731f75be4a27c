"""A variable of the environment holds meanwhile, and what its user set stays."""

import os

import pytest

from batchloom.jobs.variables import variable


def test_a_variable_holds_meanwhile_and_is_gone_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATCHLOOM_TRIED", raising=False)
    with pytest.raises(ZeroDivisionError), variable("BATCHLOOM_TRIED", "1"):
        1 / (int(os.environ["BATCHLOOM_TRIED"]) - 1)
    assert "BATCHLOOM_TRIED" not in os.environ


def test_what_its_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHLOOM_TRIED", "4")
    with variable("BATCHLOOM_TRIED", "1"):
        assert os.environ["BATCHLOOM_TRIED"] == "4"
    assert os.environ["BATCHLOOM_TRIED"] == "4"
