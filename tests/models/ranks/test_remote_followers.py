"""Followers that connect over TCP, as those on other nodes do, work as local ones do."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import transformers

from batchloom.models import load_model
from batchloom.models.errors import RankLostError
from batchloom.models.ranks.group import open_store

CONNECT = (
    "import sys; from batchloom.models.ranks.follower import main;"
    "from batchloom.models.ranks.connection import connect_to_leader;"
    "main(connect_to_leader(sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])))"
)


class ThisNode:
    """Another node, played by this one."""

    host = "127.0.0.1"

    def __init__(self):
        self.processes = []

    def start(self, rank, port, key):  # noqa: ARG002
        with socket.create_connection((self.host, port)) as stranger:  # is not let in
            stranger.sendall(bytes(len(key)))
        command = [sys.executable, "-c", CONNECT, self.host, str(port), key.hex()]
        self.processes.append(subprocess.Popen(command))


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=83, hidden_size=24, n_layer=2, n_head=4)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    return str(tmp_path)


def run(model, ids):
    while True:
        model(ids)


def test_followers_that_connect_answer_as_one_rank(checkpoint):
    node, ids = ThisNode(), torch.arange(4, 20)[None]
    model = load_model(checkpoint, device="cpu", tensor_parallel=2, follower_starter=node)
    torch.testing.assert_close(model(ids), load_model(checkpoint, device="cpu")(ids), atol=1e-5, rtol=1e-5)
    os.kill(node.processes[0].pid, signal.SIGKILL)
    with pytest.raises(RankLostError, match=r"Rank 1 of the model \(on 127.0.0.1\) closed its connection"):
        run(model, ids)


def test_followers_that_connected_end_with_the_model(checkpoint):
    node = ThisNode()
    model = load_model(checkpoint, device="cpu", tensor_parallel=4, follower_starter=node)
    model.group.followers.close()
    deadline = time.monotonic() + 20
    while any(process.poll() is None for process in node.processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_rendezvous_listens_where_the_ranks_are_and_nowhere_else():
    """It listened on all interfaces, also for ranks of one node."""
    store = open_store("127.0.0.1")
    open_store("127.0.0.1", store.port).set("key", "value")
    assert store.get("key") == b"value"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port), timeout=5)
