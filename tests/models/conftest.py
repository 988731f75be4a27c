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


@pytest.fixture
def in_followers(tmp_path, monkeypatch):
    """in_followers(code): code that followers run before anything else."""

    def prepare(code):
        lines = "\n".join(f"    {line}" for line in code.splitlines())
        text = f"import sys\nif 'batchloom.models.ranks.follower' in sys.orig_argv:\n{lines}\n"
        (tmp_path / "sitecustomize.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))

    return prepare
