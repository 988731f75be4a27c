"""Tiny random checkpoints, made by the reference implementation, for every test of models."""

import os

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # tiny matrices: threads only get in each other's way


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing that a test fetches lands in the user's cache."""
    monkeypatch.setenv("BATCHLOOM_CACHE", str(tmp_path / "batchloom-cache"))
