"""The watchdog tells that Ray is gone, whatever else it waits for."""

import threading
import time
from typing import Any

import pytest

from batchloom.pipelines.config import EngineConfig, LimitsConfig
from batchloom.pipelines.replicas.placement import Cluster, place
from batchloom.pipelines.watching import watchdog
from batchloom.pipelines.watching.ray_servers import RayServers, Server
from batchloom.pipelines.watching.watchdog import Watchdog


class GoneRoster:
    """A roster whose node died while it was asked: nobody answers until the wait is over."""

    def __init__(self) -> None:
        self.is_asked, self.is_over = threading.Event(), threading.Event()

    def look(self, seconds: float) -> list[Any]:
        self.is_asked.set()
        self.is_over.wait(seconds)
        raise TimeoutError


def test_a_raylet_that_dies_while_the_roster_is_asked_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was asked after the roster, which took 10 seconds, and Ray ended the process first, without a word of ours."""
    roster: Any = GoneRoster()
    raylet = Server("Ray's raylet", ("localhost", 1), 0.05)
    servers = RayServers([raylet], ask=lambda _: not roster.is_asked.is_set())
    monkeypatch.setattr(RayServers, "of_this_driver", lambda: servers)
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog.ray, "nodes", lambda: [])
    placement = place(EngineConfig(device="cpu"), Cluster([{"CPU": 2}]))
    with Watchdog(roster, placement, LimitsConfig(), 30.0) as watch:
        assert roster.is_asked.wait(5)
        deadline = time.monotonic() + 5  # half of the wait for the roster
        while watch.loss() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        loss = watch.loss()
        roster.is_over.set()
    assert loss == "Ray's raylet does not answer for 0 s: it was killed or cannot be reached."
