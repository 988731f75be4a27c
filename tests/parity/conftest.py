"""The parity table: collected while the tests run, printed at the end of the run."""

import os

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

ROWS: list[tuple[str, str, float]] = []


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCHLOOM_CACHE", str(tmp_path / "batchloom-cache"))


@pytest.fixture
def table():
    """Appends (architecture, trait, largest absolute difference) to the table that the run prints."""
    return ROWS


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    terminalreporter.section("parity with the reference: largest absolute difference of logits, float32")
    for architecture, trait, difference in sorted(ROWS):
        terminalreporter.write_line(f"{architecture:42s} {trait:46s} {difference:.1e}")


def pytest_configure():
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
