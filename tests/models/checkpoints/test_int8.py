"""Models in int8: every family and head is near float32, on several ranks too, and takes a fraction of the memory."""

import inspect
import json
import subprocess
import sys

import pytest
import torch
import transformers

from batchloom.models import Engine, Footprint, GenerationParams, SinglePass, load_model
from batchloom.models.checkpoints import loading, memory
from batchloom.models.errors import DeviceError
from batchloom.models.families import projections
from batchloom.models.families.table import FAMILIES, architectures
from batchloom.models.layers import int8
from batchloom.models.layers.linear import ColumnLinear

pytestmark = pytest.mark.skipif(not int8.computes_int8(), reason="no exact int8 products on this processor")
SIZES = {
    "vocab_size": 83, "num_labels": 3, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1, "n_layer": 2,
    "n_head": 4, "hidden_size": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40,
    "forced_eos_token_id": None, "decoder_start_token_id": 2,
}  # fmt: skip
PROMPTS = [[5, 9, 14, 33, 2], [7, 2], [60, 61, 82, 80, 4, 4, 17, 2]]
# Of logits, as a share of their size.
TOLERANCE = 0.08


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(architecture) -> a folder with random weights and biases, made once."""
    made = {}

    def get(architecture):
        if architecture not in made:
            family = architecture.removesuffix("Model").split("For")[0]
            sizes = dict(SIZES)
            if family == "Bloom":
                sizes = {name: sizes[name] for name in ("vocab_size", "n_layer", "n_head", "hidden_size", "num_labels")}
                sizes |= {"eos_token_id": 2, "pad_token_id": 1}
            else:
                sizes["d_model"] = sizes.pop("hidden_size")
            if architecture.endswith("CausalLM") and family != "Bloom":
                sizes["is_encoder_decoder"] = False
            torch.manual_seed(0)
            reference = getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**sizes))
            with torch.no_grad():
                for name, parameter in reference.named_parameters():
                    if parameter.dim() > 1 or name.endswith("bias"):
                        parameter.normal_(0.0, 0.1)
            made[architecture] = str(tmp_path_factory.mktemp(architecture))
            reference.save_pretrained(made[architecture])
        return made[architecture]

    return get


def outputs(model):
    """What a model's forward gives for some rows, as a tuple."""
    ids = torch.randint(4, 83, (4, 10), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 2
    arguments = {"input_ids": ids}
    if model.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        arguments["decoder_input_ids"] = ids.flip(1)
    found = model(**arguments)
    return found if isinstance(found, tuple) else (found,)


def error(found, expected):
    return max(
        ((mine.float() - theirs).norm() / theirs.norm()).item() for mine, theirs in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("architecture", architectures())
def test_every_family_and_head_is_near_float32(checkpoint, architecture):
    folder = checkpoint(architecture)
    model, exact = load_model(folder, dtype="int8", device="cpu"), load_model(folder, dtype="float32", device="cpu")
    assert model.dtype == torch.bfloat16
    off = error(outputs(model), outputs(exact))
    assert 0 < off < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.prefix)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_every_family_generates_and_a_row_does_not_depend_on_its_neighbours(checkpoint, family, num_beams):
    name = next(one for one in family.architectures if one.endswith(("ConditionalGeneration", "BloomForCausalLM")))
    model = load_model(checkpoint(name), dtype="int8", device="cpu")
    params = GenerationParams(num_beams=num_beams, max_new_tokens=9, min_new_tokens=9)

    def tokens(prompts):
        return [request.outputs[0].token_ids for request in Engine(model).generate(prompts, params)]

    together = tokens(PROMPTS)
    assert [len(one) for one in together] == [9, 9, 9]
    assert [tokens([prompt])[0] for prompt in PROMPTS] == together


def test_single_passes_classify_mark_and_answer(checkpoint):
    for architecture, method in (
        ("BartForSequenceClassification", "classify"),
        ("BloomForTokenClassification", "token_logits"),
        ("BartForQuestionAnswering", "spans"),
        ("BloomForCausalLM", "score"),
    ):
        found, expected = (
            getattr(SinglePass(load_model(checkpoint(architecture), dtype=dtype, device="cpu")), method)(PROMPTS)
            for dtype in ("int8", "float32")
        )
        if method == "score":
            found, expected = ([torch.as_tensor(one.log_probs) for one in scores] for scores in (found, expected))
        # Logits of these heads are near 0.5, so this is TOLERANCE of them and as much again.
        torch.testing.assert_close(found, expected, atol=0.08, rtol=TOLERANCE, check_dtype=False)


@pytest.mark.parametrize("architecture", ["BartForConditionalGeneration", "BloomForCausalLM"])
def test_ranks_are_as_near(checkpoint, architecture):
    """Each quantizes its own columns by their own scales, so ranks differ from one rank, as little as from float32."""
    folder = checkpoint(architecture)
    both = load_model(folder, dtype="int8", device="cpu", tensor_parallel=2)
    try:
        assert error(outputs(both), outputs(load_model(folder, dtype="float32", device="cpu"))) < TOLERANCE
        params = GenerationParams(max_new_tokens=5, min_new_tokens=5)
        assert [len(one.outputs[0].token_ids) for one in Engine(both).generate(PROMPTS, params)] == [5, 5, 5]
    finally:
        both.group.followers.close()


@pytest.mark.parametrize("architecture", architectures())
def test_bytes_are_those_of_the_footprint(checkpoint, architecture):
    model = load_model(checkpoint(architecture), dtype="int8", device="cpu")
    layers = memory._linear_layers(model)
    weights = [getattr(layer, "fused", (getattr(layer, "_laid_out", None),))[0] for layer in layers]
    assert all(isinstance(weight, int8.Int8Weight) for weight in weights)
    others = {parameter for parameter in model.parameters() if not parameter.is_meta}
    held = sum(weight.num_bytes for weight in weights) + sum(parameter.nbytes for parameter in others)
    footprint = Footprint(config=model.config, architecture=architecture, dtype="int8")
    assert held == footprint.weight_bytes


def test_layers_are_read_in_groups(checkpoint, monkeypatch):
    """Of one layer, where each is larger than what is read together."""
    folder = checkpoint("BartForConditionalGeneration")
    together = load_model(folder, dtype="int8", device="cpu")
    monkeypatch.setattr(memory, "READ_BYTES", 1)
    assert error(outputs(load_model(folder, dtype="int8", device="cpu")), outputs(together)) == 0


PEAK = """
import sys
from batchloom.models.checkpoints import memory
memory.READ_BYTES = 1 << 20  # one layer at a time
from benchmarks.loading_memory import load
load(sys.argv[1], sys.argv[2])
"""


def test_loading_takes_a_fraction_of_the_memory(tmp_path):
    """A model of 79 MB of float32 in linear layers and little else; a quarter of it, and what is read together."""
    sizes = {**SIZES, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "d_model": 512, "encoder_layers": 3}
    del sizes["hidden_size"]
    transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes)).save_pretrained(tmp_path)
    peaks = {}
    for dtype in ("float32", "int8"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path), dtype], check=True, capture_output=True, text=True
        )
        told = json.loads(done.stdout)
        peaks[dtype] = told["peak"] - told["base"]
    # A quarter, and one weight in float32 (4 MB) with its copies, where memory that was freed is used again.
    assert peaks["int8"] < peaks["float32"] / 4 + 24e6


def test_another_device_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"int8 is computed on CPUs alone\. Use dtype = 'bfloat16' or 'auto' there"):
        load_model(checkpoint("BartModel"), dtype="int8", device="cuda")


def test_a_processor_without_exact_products_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(loading, "computes_int8", lambda: False)
    with pytest.raises(DeviceError, match=r"has no exact int8 products .* Use dtype = 'bfloat16' or 'float32'\."):
        load_model(checkpoint("BartModel"), dtype="int8", device="cpu")


def test_without_bfloat16_all_else_is_float32(checkpoint, monkeypatch):
    folder = checkpoint("BartForConditionalGeneration")
    exact = outputs(load_model(folder, dtype="float32", device="cpu"))
    monkeypatch.setattr(loading, "computes_in", lambda dtype: dtype == torch.float32)
    model = load_model(folder, dtype="int8", device="cpu")
    assert model.dtype == torch.float32
    assert 0 < error(outputs(model), exact) < TOLERANCE


def test_projections_of_one_input_are_one_product(checkpoint, monkeypatch):
    """Its rows are quantized once."""
    model = load_model(checkpoint("BartModel"), dtype="int8", device="cpu")
    attention, seen = model.encoder.layers[0].self_attn, []
    plain = projections.product
    monkeypatch.setattr(projections, "product", lambda hidden, *more: seen.append(len(hidden)) or plain(hidden, *more))
    attention.project(torch.randn(5, 24).bfloat16())
    assert seen == [5]
    assert all(isinstance(linear, ColumnLinear) and linear.weight.is_meta for linear in attention.linears)
