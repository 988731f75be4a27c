"""Memory that a process may still take."""

import pytest
import torch

from batchloom.models.device import free_bytes, limit_to_share

GIB = 1 << 30


class Gpu:
    """A GPU's memory as torch tells it: of 80 GiB some are free, some this process holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, held: int) -> None:
        self.share = 1.0
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: held * GIB)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: self.share)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self._set_share)

    def _set_share(self, share: float) -> None:
        self.share = share


@pytest.mark.parametrize(
    ("free", "held", "share", "left"),
    [
        (70, 8, 1.0, 70),  # alone: what is free
        (70, 8, 0.5, 32),  # the first of two replicas leaves the other half to the second
        (10, 8, 0.5, 10),  # the second took more than it may
        (70, 41, 0.5, 0),
    ],
)
def test_a_process_takes_its_share_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, free: int, held: int, share: float, left: int
) -> None:
    Gpu(monkeypatch, free, held)
    if share < 1:
        limit_to_share(share)
    assert free_bytes(torch.device("cuda")) == left * GIB
