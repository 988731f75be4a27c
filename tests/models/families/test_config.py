"""config.json as it is found in the wild: old spellings, nulls, partial files; and what is refused.

The real files lie beside the checkout and are not copied into it; tiny ones with the same quirks always run.
"""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from batchloom.models import describe, load_model
from batchloom.models.checkpoints.hub import open_source
from batchloom.models.checkpoints.info import generation_defaults
from batchloom.models.checkpoints.loading import resolve_dtype
from batchloom.models.checkpoints.tensors import Checkpoint
from batchloom.models.errors import CheckpointError, UnsupportedModelError
from batchloom.models.families.config import BloomConfig, EncoderDecoderConfig
from batchloom.models.families.reading import read_config
from batchloom.models.families.table import architecture_of

REAL_DATA = Path(os.environ.get("BATCHLOOM_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")
REAL_FILES = (
    "bart-base.config.json",
    "bart-large-cnn.saved.config.json",
    "bart-large.config.json",
    "blenderbot-1B-distill.paddlenlp.partial.json",
    "blenderbot-3B.paddlenlp.partial.json",
    "blenderbot-400M-distill.config.json",
    "blenderbot_small-90M.rebuilt.config.json",
    "bloom-560m.config.json",
    "bloomz-560m.finetuned.config.json",
    "distilbart-cnn-12-6.partial.config.json",
)
TINY_BART = {
    "vocab_size": 71,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 12,
    "num_hidden_layers": 1,
}
BLOOM_SIZES = {"hidden_size": 16, "n_embed": 16, "n_head": 2, "num_attention_heads": 2, "n_layer": 2, "vocab_size": 71}


def shrunk(raw):
    """The file with tiny sizes under the very keys that it uses."""
    tiny = BLOOM_SIZES if raw["model_type"] == "bloom" else TINY_BART
    # A key that a partial file leaves out would fall to the family's default, which is not tiny.
    required = () if raw["model_type"] == "bloom" else tuple(key for key in TINY_BART if key != "num_hidden_layers")
    return raw | {key: value for key, value in tiny.items() if key in raw or key in required}


def save_reference(raw, folder):
    """A random reference model of this configuration, and the raw file itself as its config.json."""
    class_name = architecture_of(read_config(raw, "config.json"))
    family = class_name.split("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{family}Config")(**raw)
    torch.manual_seed(0)
    reference = getattr(transformers, class_name)(config).eval()
    reference.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return reference


def assert_loads_like_the_reference(raw, folder):
    reference = save_reference(raw, folder)
    model = load_model(str(folder))
    ids = torch.randint(4, 71, (2, 12))
    arguments = {"input_ids": ids}
    if raw["model_type"].startswith("blenderbot"):
        arguments["decoder_input_ids"] = torch.randint(4, 71, (2, 5))
    with torch.no_grad():
        expected = reference(**arguments, use_cache=False)
    expected = expected.logits if hasattr(expected, "logits") else expected.last_hidden_state
    assert torch.allclose(model(**arguments), expected, atol=2e-6)


def real(name):
    path = REAL_DATA / "configs" / name
    if not path.exists():
        pytest.skip(f"{path} is absent; BATCHLOOM_REAL_DATA says where real data is")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_load_with_their_quirks(name, tmp_path):
    assert_loads_like_the_reference(shrunk(real(name)), tmp_path)


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_say_what_the_reference_reads(name):
    raw = real(name)
    config = read_config(raw, name)
    reference = transformers.AutoConfig.for_model(**raw)
    for field in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "num_labels", "id2label"):
        assert getattr(config, field) == getattr(reference, field), field
    if isinstance(config, BloomConfig):
        assert (config.hidden_size, config.n_head, config.n_layer) == (1024, 16, 24)
    else:
        for field in ("d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "max_position_embeddings"):
            assert getattr(config, field) == getattr(reference, field), field


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_generate_as_the_reference_reads_them(name, tmp_path):
    raw = real(name)
    beside = REAL_DATA / "configs" / name.replace(".saved", "").replace(".config.", ".generation_config.")
    raw_generation = json.loads(beside.read_text()) if beside.exists() and beside.name != name else None
    (tmp_path / "config.json").write_text(json.dumps(raw))
    if raw_generation is None:
        reference = transformers.GenerationConfig.from_pretrained(
            tmp_path, config_file_name="config.json", _from_model_config=True
        )
    else:
        (tmp_path / "generation_config.json").write_text(json.dumps(raw_generation))
        reference = transformers.GenerationConfig.from_pretrained(tmp_path)
    expected = reference.to_diff_dict()
    for stranger in ("transformers_version", "_from_model_config", "use_cache"):
        expected.pop(stranger, None)
    assert generation_defaults(raw, raw_generation) == expected


QUIRKS = {
    "heads and layers under their general names": {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "hidden_size": 16,
        **{key: value for key, value in TINY_BART.items() if key not in ("d_model", "encoder_layers")},
    },
    "nulls, strays and a vocabulary smaller than the tokenizer's": {
        "model_type": "blenderbot",
        "architectures": ["BlenderbotForConditionalGeneration"],
        "length_penalty": None,
        "num_beams": None,
        "do_blenderbot_90_layernorm": True,
        "extra_pos_embeddings": 0,
        "layernorm_variant": "prelayernorm",
        "normalize_before": True,
        "scale_embedding": True,
        **TINY_BART,
    },
    "no architectures": {"model_type": "bart", "extra_pos_embeddings": 2, **TINY_BART},
    "several architectures": {
        "model_type": "bart",
        "architectures": ["BartModel", "BartForConditionalGeneration", "BartForSequenceClassification"],
        **TINY_BART,
    },
    "bloom with n_embed and num_attention_heads": {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "n_embed": 16,
        "num_attention_heads": 2,
        "n_layer": 2,
        "n_inner": None,
        "offset_alibi": 100,
        "skip_bias_add": True,
        "seq_length": 2048,
        "vocab_size": 71,
    },
    "bloom with general names": {
        "model_type": "bloom",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 71,
    },
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_quirks_of_the_wild_load_like_the_reference(quirk, tmp_path):
    assert_loads_like_the_reference(QUIRKS[quirk], tmp_path)


def bart(**changes):
    return read_config({"model_type": "bart", **TINY_BART, **changes}, "config.json")


def test_a_partial_file_falls_to_its_familys_defaults():
    config = read_config({"model_type": "blenderbot"}, "config.json")
    assert isinstance(config, EncoderDecoderConfig)
    assert (config.d_model, config.decoder_layers, config.max_position_embeddings) == (2560, 24, 128)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_mbart_has_the_references_defaults():
    config, reference = read_config({"model_type": "mbart"}, "config.json"), transformers.MBartConfig()
    for field in dataclasses.fields(config):
        if hasattr(reference, field.name) and field.name not in ("architectures", "id2label"):
            assert getattr(config, field.name) == getattr(reference, field.name), field.name
    assert config.id2label == reference.id2label


def test_a_file_without_model_type_is_known_by_its_architecture():
    raw = {"architectures": ["BlenderbotSmallForConditionalGeneration"]}
    assert read_config(raw, "config.json").model_type == "blenderbot-small"
    assert read_config({"architectures": ["MBartModel"]}, "config.json").model_type == "mbart"
    with pytest.raises(CheckpointError, match="neither model_type nor architectures"):
        read_config({"d_model": 8}, "config.json")


def test_model_type_decides_the_family_as_in_blenderbot_90m():
    raw = {"model_type": "blenderbot-small", "architectures": ["BlenderbotForConditionalGeneration"]}
    assert architecture_of(read_config(raw, "config.json")) == "BlenderbotSmallForConditionalGeneration"


def test_an_architecture_of_another_family_is_refused():
    with pytest.raises(UnsupportedModelError, match="BartForSequenceClassification"):
        architecture_of(bart(), "BloomForCausalLM")


def test_labels_are_in_the_order_of_their_columns():
    config = bart(id2label={"2": "entailment", "0": "contradiction", "1": "neutral"})
    assert list(config.id2label.values()) == ["contradiction", "neutral", "entailment"]
    assert config.label2id["entailment"] == 2
    assert bart(label2id={"yes": 1, "no": 0}).id2label == {0: "no", 1: "yes"}
    assert bart(num_labels=5).num_labels == 5
    # The reference counts num_labels where the names are not as many.
    assert bart(num_labels=3, id2label={"0": "no", "1": "yes"}).id2label == {n: f"LABEL_{n}" for n in range(3)}
    assert bart().num_labels == 3  # BART's default; BLOOM's is 2


def test_several_end_tokens_are_kept():
    config = bart(eos_token_id=[2, 5])
    assert (config.eos_token_id, config.eos_token_ids) == (2, (2, 5))


def test_all_bad_values_of_a_file_come_in_one_error():
    with pytest.raises(CheckpointError) as caught:
        bart(d_model=0, vocab_size="many", static_position_embeddings=True)
    message = str(caught.value)
    assert "d_model = 0" in message
    assert "vocab_size = 'many'" in message
    assert "static_position_embeddings" in message
    with pytest.raises(CheckpointError, match="encoder_attention_heads = 3 does not divide the width 16"):
        bart(encoder_attention_heads=3)


def test_an_unknown_activation_lists_the_known(tmp_path):
    save_reference({"model_type": "bart", **TINY_BART}, tmp_path)
    raw = {"model_type": "bart", "activation_function": "gelu_of_tomorrow", **TINY_BART}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UnsupportedModelError, match="gelu_pytorch_tanh"):
        load_model(str(tmp_path))


def test_the_old_spelling_of_a_forced_first_token_is_understood():
    raw = {"force_bos_token_to_be_generated": True, "bos_token_id": 0}
    assert generation_defaults(raw, None)["forced_bos_token_id"] == 0
    assert "forced_bos_token_id" not in generation_defaults(raw | {"force_bos_token_to_be_generated": False}, None)


def test_generation_config_speaks_alone_where_it_exists():
    """As in the reference: a beam count left in config.json does not come back through it."""
    raw = {"num_beams": 4, "decoder_start_token_id": 2}
    assert generation_defaults(raw, {"max_length": 60}) == {"max_length": 60, "decoder_start_token_id": 2}


@pytest.mark.parametrize("option", [{"stop_strings": ["end"]}, {"guidance_scale": 1.5}, {"force_words_ids": [[5]]}])
def test_what_a_checkpoint_asks_of_generation_is_not_lost(option):
    """Options that decide tokens were not looked for, so a checkpoint that asks for one was answered without it."""
    assert generation_defaults({}, option) == option


def test_describe_puts_the_tasks_parameters_on_top(tmp_path):
    raw = {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "num_beams": 4,
        "prefix": " ",
        "task_specific_params": {"summarization": {"num_beams": 6, "max_length": 62, "prefix": "summarize: "}},
        **TINY_BART,
    }
    save_reference(raw, tmp_path)
    plain, summarizing = describe(str(tmp_path)), describe(str(tmp_path), task="summarization")
    assert (plain.generation_defaults["num_beams"], plain.prefix) == (4, " ")
    assert (summarizing.generation_defaults["num_beams"], summarizing.prefix) == (6, "summarize: ")
    assert summarizing.generation_defaults["max_length"] == 62
    assert plain.max_positions == 12
    assert plain.architecture == "BartForConditionalGeneration"


@pytest.mark.parametrize("file", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("stored", "named", "dtype"),
    [
        ("bfloat16", {"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ("float16", {"dtype": "float16"}, "float16"),
        ("float32", {}, "float32"),
        ("float64", {"dtype": "float64"}, "float32"),
    ],
)
def test_a_checkpoints_dtype_is_one_that_a_model_is_loaded_in(stored, named, dtype, file, tmp_path):
    """Any other name of config.json's ended a plan for GPUs with a KeyError."""
    save_stored_as(stored, named, file, tmp_path)
    assert describe(str(tmp_path)).dtype == dtype == dtype_that_loading_takes(tmp_path)


@pytest.mark.parametrize(
    ("stored", "named", "dtype"),
    [
        ("float32", {"torch_dtype": "torch.bfloat16"}, "float32"),
        ("float32", {"dtype": "float16"}, "float32"),
        ("bfloat16", {"dtype": "float32"}, "bfloat16"),
        ("float16", {}, "float16"),
        ("float64", {"dtype": "bfloat16"}, "float32"),
    ],
)
def test_a_planned_dtype_is_that_of_the_weights_and_not_config_jsons(stored, named, dtype, tmp_path):
    save_stored_as(stored, named, "safetensors", tmp_path)
    assert describe(str(tmp_path)).dtype == dtype == dtype_that_loading_takes(tmp_path)


def save_stored_as(stored, named, file, folder):
    """Save a tiny BART with its weights in a dtype and config.json naming one."""
    save_reference({"model_type": "bart", **TINY_BART}, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bart", **TINY_BART, **named}))
    path = folder / "model.safetensors"
    tensors = {name: tensor.to(getattr(torch, stored)) for name, tensor in load_file(path).items()}
    if file == "safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
        path.unlink()


def dtype_that_loading_takes(folder):
    """The name of what dtype = "auto" is on a GPU."""
    stored = Checkpoint(open_source(str(folder))).dtype
    return str(resolve_dtype("auto", torch.device("cuda"), stored)).removeprefix("torch.")


def test_describe_imports_no_torch(tmp_path):
    import subprocess
    import sys

    save_reference({"model_type": "bloom", **BLOOM_SIZES}, tmp_path)
    code = f"import sys, batchloom.models as m; m.describe({str(tmp_path)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"architectures": [5]}, r"architectures = \[5\] must be a list of class names"),
        (
            {"architectures": "BartForConditionalGeneration"},
            "architectures = 'BartForConditionalGeneration' must be a list",
        ),
        ({"architectures": {"a": 1}}, "must be a list of class names"),
        ({"id2label": ["no", "yes"]}, "id2label = .* must be an object"),
        ({"id2label": {"first": "no"}}, "id2label = .* whole numbers"),
        ({"label2id": {"no": "first"}}, "label2id = .* whole numbers"),
        ({"label2id": {"no": None}}, "label2id = .* whole numbers"),
        ({"num_labels": 10**12}, "num_labels = 1000000000000 must be a whole number up to"),
        ({"num_labels": "3"}, "num_labels = '3'"),
        ({"scale_embedding": "false"}, "scale_embedding = 'false' must be true or false"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1 must be true or false"),
        ({"decoder_start_token_id": [2]}, r"decoder_start_token_id = \[2\] must be a whole number or null"),
        ({"eos_token_id": ["2"]}, "eos_token_ids = .* must be a whole number, or a list of them"),
        ({"problem_type": 5}, "problem_type = 5 must be a text or null"),
        ({"activation_function": 5}, "activation_function = 5 must be a text"),
        ({"vocab_size": float("inf")}, "vocab_size = inf must be a whole number above 0"),
        ({"model_type": ["bart"]}, "model_type = .* is not one we have"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_values_of_odd_types_are_refused_by_name(raw, message):
    """architectures as a text was read letter by letter, and the bare model loaded; 'false' counted as true."""
    with pytest.raises(CheckpointError, match=message):
        bart(**raw)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_nests_without_end_is_refused(tmp_path, name):
    save_reference({"model_type": "bart", **TINY_BART}, tmp_path)
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=f"{name} nests deeper"):
        describe(str(tmp_path))


def test_parameters_of_tasks_that_are_no_objects_are_refused(tmp_path):
    save_reference({"model_type": "bart", **TINY_BART}, tmp_path)
    for odd in ([5], {"summarization": "short"}):
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "bart", **TINY_BART, "task_specific_params": odd})
        )
        with pytest.raises(CheckpointError, match="task_specific_params must hold an object for each task"):
            describe(str(tmp_path), task="summarization")
