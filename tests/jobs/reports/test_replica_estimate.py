"""What `batchloom plan` says of a replica: on paper, before anything is started."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def write_model_without_weights(folder: Path, config: dict[str, Any]) -> str:
    """Its weight file is whole and holds nothing: a plan reads sizes from config.json alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return str(folder)


def test_the_guides_plan_of_bloom_176b_is_what_the_command_prints(
    batchloom: Run, make_job: MakeJob, tmp_path: Path
) -> None:
    model = write_model_without_weights(tmp_path / "bloom", BLOOM_176B)
    engine = {"dtype": "bfloat16", "tensor_parallel": 8}
    job = make_job(task="text-generation", model=model, generation={"max_new_tokens": 64}, engine=engine)
    said = batchloom("plan", job)
    assert said.code == 0
    printed = re.search(r"^Replica .*\n^Weights .*\n^Cache .*\n^Step .*\n", said.out, re.MULTILINE)
    assert printed
    assert f"```\n{printed.group()}```" in GUIDE.read_text()


def test_a_plan_is_of_the_machine_that_it_is_told(batchloom: Run, make_job: MakeJob, tmp_path: Path) -> None:
    model = write_model_without_weights(tmp_path / "bloom", BLOOM_176B)
    engine = {"dtype": "bfloat16", "tensor_parallel": 4}
    job = make_job(task="text-generation", model=model, generation={"max_new_tokens": 64}, engine=engine)
    said = batchloom("plan", job)
    assert re.search(r"Step +no room for a sequence of 1,024 tokens: more ranks, or a larger device", said.out)
    larger = ("--memory", 192, "--bandwidth", 8000, "--storage", 20, "--tokens", 512)
    (values,) = batchloom("plan", job, "--json", *larger).json
    replica = values["replica"]
    assert replica["num_sequences"] == min(512, replica["cached_tokens"] // 512) > 0
    assert replica["loading_seconds"] == 4 * replica["weight_bytes_of_rank"] / 20e9
    assert replica["step_seconds_of_one"] > replica["weight_bytes_of_rank"] / 8e12


def test_a_plan_for_a_cpu_guesses_no_speed_and_knows_the_bytes(
    batchloom: Run, make_job: MakeJob, checkpoint: str
) -> None:
    (values,) = batchloom("plan", make_job(), "--json").json
    loaded = models.load_model(checkpoint)
    assert values["replica"]["weight_bytes_of_rank"] == sum(parameter.nbytes for parameter in loaded.parameters())
    assert values["replica"]["cache_bytes_a_token"] == 2 * loaded.num_layers * loaded.hidden_size * 4
    assert "step_seconds" not in values["replica"]


def test_a_plan_of_a_task_that_generates_nothing_has_no_steps(
    batchloom: Run, make_job: MakeJob, tmp_path: Path
) -> None:
    model = write_model_without_weights(tmp_path / "bloom", BLOOM_176B)
    said = batchloom("plan", make_job(task="feature-extraction", model=model, generation={}, engine={}))
    assert said.code == 0
    assert re.search(r"Weights +705 GB a rank", said.out)
    assert "Cache" not in said.out
    assert "Step" not in said.out
