"""A model is loaded through an outage of its store; a wrong address is told within seconds."""

import fsspec
import pytest
import torch

from batchloom.models import describe, load_model
from batchloom.models.checkpoints import asking
from batchloom.models.errors import CheckpointError
from batchloom.models.patience import Patience
from tests.pipelines.faulty import FaultyFileSystem

URI = "faulty://bucket/tiny"
IDS = torch.tensor([[5, 6, 7, 2]])


@pytest.fixture
def store(checkpoint):
    FaultyFileSystem.reset()
    fsspec.filesystem("memory").put(f"{checkpoint}/", "/bucket/tiny/", recursive=True)
    yield FaultyFileSystem
    FaultyFileSystem.reset()


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TimeoutError("slow"), PermissionError("not now")])
@pytest.mark.parametrize("kind", ["list", "info", "read"])
def test_a_planned_model_is_loaded_through_an_outage(store, checkpoint, kind, error):
    pinned = describe(URI).pinned
    store.faults[kind] += [error] * 3
    assert torch.equal(load_model(pinned)(IDS), load_model(str(checkpoint))(IDS))
    assert not store.faults[kind]


def test_a_planned_model_that_is_not_found_for_a_moment_is_waited_for(store, checkpoint):
    pinned = describe(URI).pinned
    store.faults["list"] += [FileNotFoundError("404")] * 2
    assert torch.equal(load_model(pinned)(IDS), load_model(str(checkpoint))(IDS))


def test_planning_hashes_the_weights_through_resets(store, checkpoint):
    store.faults["read"] += [ConnectionResetError("gone")] * 2
    assert describe(URI).weights_hash == describe(str(checkpoint)).weights_hash


def test_a_first_question_that_is_refused_is_told_soon(store, monkeypatch):
    monkeypatch.setattr(asking, "FIRST", Patience(seconds=0.3))
    monkeypatch.setattr("batchloom.models.checkpoints.hub.FIRST", asking.FIRST)
    store.always["list"] = PermissionError("wrong key")
    with pytest.raises(
        CheckpointError, match=r"cannot be listed: PermissionError: wrong key \(tried \d times in 0 s\)"
    ):
        describe(URI)


def test_a_model_that_is_not_there_is_told_at_once(store):
    with pytest.raises(CheckpointError, match="no such folder, or it is empty"):
        describe("faulty://bucket/nothing")
    assert store.num_calls["list"] == 1
