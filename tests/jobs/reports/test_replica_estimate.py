"""What `batchloom plan` says of a replica: on paper, before anything is started."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from batchloom import models

Run = Callable[..., Any]
MakeJob = Callable[..., Path]

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "scaling.md"
BLOOM_176B = {
    "model_type": "bloom",
    "architectures": ["BloomForCausalLM"],
    "vocab_size": 250880,
    "n_embed": 14336,
    "n_layer": 70,
    "num_attention_heads": 112,
}


@pytest.fixture
def bloom_176b(tmp_path: Path, checkpoint: str) -> str:
    """Its weight file is whole and names an empty tensor of each layer: a plan counts bytes from config.json alone."""
    folder = tmp_path / "bloom"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BLOOM_176B))
    names = [f"h.{layer}.input_layernorm.bias" for layer in range(BLOOM_176B["n_layer"])]
    save_file({name: np.zeros(0, np.float32) for name in names}, folder / "model.safetensors")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(Path(checkpoint, name), folder)
    return str(folder)


def test_the_guides_plan_of_bloom_176b_is_what_the_command_prints(
    batchloom: Run, make_job: MakeJob, bloom_176b: str
) -> None:
    engine = {"dtype": "bfloat16", "tensor_parallel": 8}
    job = make_job(task="text-generation", model=bloom_176b, generation={"max_new_tokens": 64}, engine=engine)
    said = batchloom("plan", job, "--gpu", "h100")
    assert said.code == 0
    printed = re.search(r"^Replica .*\n^Weights .*\n^Cache .*\n^Step .*\n^Machine .*\n", said.out, re.MULTILINE)
    assert printed
    assert f"```\n{printed.group()}```" in GUIDE.read_text()


def test_a_plan_is_of_the_machine_that_it_is_told(batchloom: Run, make_job: MakeJob, bloom_176b: str) -> None:
    engine = {"dtype": "bfloat16", "tensor_parallel": 4}
    job = make_job(task="text-generation", model=bloom_176b, generation={"max_new_tokens": 64}, engine=engine)
    said = batchloom("plan", job, "--gpu", "h100")
    assert re.search(r"Step +no room for a sequence of 1,024 tokens: more ranks, or a larger device", said.out)
    larger = ("--memory", 192, "--bandwidth", 8000, "--storage", 20, "--tokens", 512)
    (values,) = batchloom("plan", job, "--json", *larger).json
    replica = values["replica"]
    assert replica["num_sequences"] == min(512, replica["cached_tokens"] // 512) > 0
    assert replica["loading_seconds"] == 4 * replica["weight_bytes_of_rank"] / 20e9
    assert replica["step_seconds_of_one"] > replica["weight_bytes_of_rank"] / 8e12


def test_two_replicas_of_a_gpu_have_half_of_its_memory_each(batchloom: Run, make_job: MakeJob, bloom_176b: str) -> None:
    tokens = {}
    for share, memory in ((1.0, 400), (0.5, 800)):
        job = make_job(
            task="text-generation", model=bloom_176b, engine={"dtype": "bfloat16", "gpus_per_replica": share}
        )
        (values,) = batchloom("plan", job, "--json", "--memory", memory).json
        tokens[share] = values["replica"]["cached_tokens"]
    assert tokens[0.5] == tokens[1.0] > 0


def test_a_plan_for_a_cpu_guesses_no_speed_and_knows_the_bytes(
    batchloom: Run, make_job: MakeJob, checkpoint: str
) -> None:
    (values,) = batchloom("plan", make_job(), "--json").json
    loaded = models.load_model(checkpoint)
    assert values["replica"]["weight_bytes_of_rank"] == sum(parameter.nbytes for parameter in loaded.parameters())
    assert values["replica"]["cache_bytes_a_token"] == 2 * loaded.num_layers * loaded.hidden_size * 4
    assert "step_seconds" not in values["replica"]


def test_a_plan_of_a_task_that_generates_nothing_has_no_steps(
    batchloom: Run, make_job: MakeJob, bloom_176b: str
) -> None:
    said = batchloom("plan", make_job(task="feature-extraction", model=bloom_176b, generation={}, engine={}))
    assert said.code == 0
    assert re.search(r"Weights +705 GB a rank", said.out)
    assert "Cache" not in said.out
    assert "Step" not in said.out


def test_sequences_are_as_long_as_the_model_has_room_for(batchloom: Run, make_job: MakeJob, checkpoint: str) -> None:
    """1,024 tokens were assumed of any model: of one with 64 positions, too."""
    positions = models.describe(checkpoint).max_positions
    assert positions is not None
    job = make_job(generation={"num_beams": 1, "max_length": 8, "min_length": 2}, engine={"device": "auto"})
    (values,) = batchloom("plan", job, "--json").json
    assert values["replica"]["tokens_a_sequence"] == positions + 8
    (values,) = batchloom("plan", job, "--json", "--tokens", 100).json
    assert values["replica"]["tokens_a_sequence"] == 100


def test_the_dtype_of_a_plan_is_that_of_the_weights_as_a_run_takes_it(
    batchloom: Run, make_job: MakeJob, checkpoint: str, tmp_path: Path
) -> None:
    """It was what config.json says, which nobody reads when weights are loaded."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    assert models.describe(str(folder)).dtype == "float32"
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.astype(np.float16) for name, tensor in weights.items()}, folder / "model.safetensors")
    assert models.describe(str(folder)).dtype == "float16"
    job = make_job(model=str(folder), engine={"device": "auto"})
    said = batchloom("plan", job)
    assert re.search(r"Replica +1 rank, float16 \(float32 on CPUs\), ", said.out)
