"""Two replicas on one GPU: each has its share of the memory, at the same time, and no more."""

import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

REPLICA = """
import torch
from batchloom.models import Engine, GenerationParams
from batchloom.models.device import free_bytes, limit_to_share
from benchmarks.random_model import random_model

device = torch.device("cuda", 0)
limit_to_share(0.5)
total = torch.cuda.get_device_properties(device).total_memory
model = random_model("tiny-bart", device, torch.float32, deviation=0.4)
assert free_bytes(device) <= total / 2
print("ready", flush=True)
input()
params = GenerationParams(max_new_tokens=20, min_new_tokens=20, num_beams=2)
said = [answer.outputs[0].token_ids for answer in Engine(model).generate([[5, 6, 7]] * 30, params)]
try:
    torch.empty(int(total * 0.6), dtype=torch.uint8, device=device)
except torch.OutOfMemoryError:
    print("limited", said[0])
"""


def test_two_replicas_share_a_gpu():
    replicas = [
        subprocess.Popen([sys.executable, "-c", REPLICA], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [replica.stdout.readline() for replica in replicas] == ["ready\n"] * 2  # both hold their model now
    ends = [replica.communicate("\n", timeout=120)[0] for replica in replicas]
    assert ends[0].startswith("limited [")
    assert ends[0] == ends[1]
