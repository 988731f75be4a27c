"""Every form in which checkpoints come gives the same model; unsafe and broken ones are refused."""

import json
import shutil

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration, BloomConfig, BloomForCausalLM

from batchloom.models import describe, load_model
from batchloom.models.errors import CheckpointError


def tiny_bart(**changes):
    sizes = {
        "vocab_size": 67,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 16,
    }
    torch.manual_seed(0)
    return BartForConditionalGeneration(BartConfig(**(sizes | changes))).eval()


def tiny_bloom(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 67, "hidden_size": 16, "n_layer": 2, "n_head": 2}
    return BloomForCausalLM(BloomConfig(**(sizes | changes))).eval()


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    tiny_bart().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bloom")
    tiny_bloom().save_pretrained(folder)
    return folder


def logits(folder, **options):
    ids = torch.randint(4, 67, (3, 9), generator=torch.Generator().manual_seed(1))
    return load_model(str(folder), **options)(ids)


def rewritten(source, target, write):
    """A copy of a checkpoint whose weights `write(weights, folder)` wrote."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    write(weights, target)
    return target


def write_safetensors(weights, folder):
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def write_shards(weights, folder, suffix="safetensors", stem="model"):
    names = sorted(weights)
    parts = [names[i::3] for i in range(3)]
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file_name = f"{stem}-{number:05d}-of-00003.{suffix}"
        shard = {name: weights[name] for name in part}
        if suffix == "safetensors":
            save_file(shard, folder / file_name)
        else:
            torch.save(shard, folder / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def write_bin(weights, folder):
    torch.save(weights, folder / "pytorch_model.bin")


def write_bin_shards(weights, folder):
    write_shards(weights, folder, suffix="bin", stem="pytorch_model")


def write_bin_of_old(weights, folder):
    """The format from before torch 1.6, as the first BART checkpoints have it."""
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def write_bin_of_transposed(weights, folder):
    """As conversions from TensorFlow leave them: torch.save keeps strides."""
    transposed = {name: one.t().contiguous().t() if one.dim() == 2 else one for name, one in weights.items()}
    torch.save(transposed | {"stray": torch.eye(2).to_sparse()}, folder / "pytorch_model.bin")


def write_bin_with_every_tied_name(weights, folder):
    shared = weights["model.shared.weight"]
    tied = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    torch.save(weights | dict.fromkeys(tied, shared), folder / "pytorch_model.bin")


def write_equal_copies(weights, folder):
    shared = weights["model.shared.weight"]
    write_safetensors(weights | {"lm_head.weight": shared.clone()}, folder)


def write_under_another_tied_name(weights, folder):
    weights = dict(weights)
    write_safetensors(weights | {"lm_head.weight": weights.pop("model.shared.weight")}, folder)


def write_without_prefix(weights, folder):
    write_safetensors({name.removeprefix("model."): tensor for name, tensor in weights.items()}, folder)


def write_with_module_prefix(weights, folder):
    write_safetensors({f"module.{name}": tensor for name, tensor in weights.items()}, folder)


def write_with_strays(weights, folder):
    strays = {
        "model.encoder.version": torch.tensor([3.0]),
        "decoder.version": torch.tensor([3.0]),
        "model.encoder.embed_positions._float_tensor": torch.zeros(1),
        "classification_head.dense.weight": torch.zeros(4, 4),
    }
    write_safetensors(weights | strays, folder)


FORMS = [
    write_shards,
    write_bin,
    write_bin_shards,
    write_bin_of_old,
    write_bin_of_transposed,
    write_bin_with_every_tied_name,
    write_equal_copies,
    write_under_another_tied_name,
    write_without_prefix,
    write_with_module_prefix,
    write_with_strays,
]


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_every_form_gives_the_same_logits(bart, tmp_path, write):
    folder = rewritten(bart, tmp_path / "form", write)
    assert torch.equal(logits(folder), logits(bart))
    assert describe(str(folder)).weights_hash


@pytest.mark.parametrize("write", [write_shards, write_bin, write_bin_shards], ids=lambda write: write.__name__)
def test_every_form_streams_from_a_store(bart, tmp_path, write):
    folder = rewritten(bart, tmp_path / "form", write)
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{folder}/", f"/forms/{write.__name__}/", recursive=True)
    assert torch.equal(logits(f"memory://forms/{write.__name__}"), logits(bart))
    filesystem.rm("/forms", recursive=True)


def test_bloom_loads_with_and_without_its_prefix(bloom, tmp_path):
    def bare(weights, folder):
        write_safetensors({name.removeprefix("transformer."): tensor for name, tensor in weights.items()}, folder)

    assert torch.equal(logits(rewritten(bloom, tmp_path / "bare", bare)), logits(bloom))


def test_a_bare_checkpoint_loads_with_a_head_and_the_other_way_round(bart, tmp_path):
    """bart-base is saved as BartModel: the head is its embedding, and a missing final_logits_bias is zero."""

    def bare(weights, folder):
        write_without_prefix({n: t for n, t in weights.items() if n != "final_logits_bias"}, folder)

    folder = rewritten(bart, tmp_path / "bare", bare)
    assert torch.equal(logits(folder, architecture="BartForConditionalGeneration"), logits(bart))
    hidden = logits(bart, architecture="BartModel")
    assert torch.equal(hidden, logits(folder, architecture="BartModel"))
    assert hidden.shape == (3, 9, 16)


def test_a_decoder_alone_loads_from_the_whole_model(bart):
    assert logits(bart, architecture="BartForCausalLM").shape == (3, 9, 67)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_other_dtypes_are_cast(bart, tmp_path, dtype):
    def cast(weights, folder):
        write_safetensors({name: tensor.to(dtype) for name, tensor in weights.items()}, folder)

    folder = rewritten(bart, tmp_path / "cast", cast)
    model = load_model(str(folder))
    assert model.dtype == torch.float32
    expected = load_file(folder / "model.safetensors")["model.encoder.embed_positions.weight"].float()
    assert torch.equal(model.model.encoder.embed_positions.weight, expected)


def test_copies_that_differ_are_loaded_apart(bart, tmp_path):
    """As the reference does since 5.0: a file that holds another output head means it, whatever config.json says."""

    def differ(weights, folder):
        write_safetensors(weights | {"lm_head.weight": weights["model.shared.weight"] * 2}, folder)

    folder = rewritten(bart, tmp_path / "differ", differ)
    assert torch.allclose(logits(folder), logits(bart) * 2, atol=1e-6)


def test_an_untied_head_that_is_missing_is_said_so(tmp_path):
    tiny_bart(tie_word_embeddings=False).save_pretrained(tmp_path / "untied")

    def without_head(weights, folder):
        write_safetensors({name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}, folder)

    folder = rewritten(tmp_path / "untied", tmp_path / "headless", without_head)
    with pytest.raises(CheckpointError, match=r"lm_head.weight \[67, 16\] is missing"):
        load_model(str(folder))


class Intruder:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_a_pickle_with_code_is_refused_and_not_run(bart, tmp_path, capsys):
    def with_code(weights, folder):
        torch.save(weights | {"intruder": Intruder()}, folder / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match="carries code"):
        load_model(str(rewritten(bart, tmp_path / "code", with_code)))
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken zip", b"\x80\x02}q\x00."])
def test_a_bin_file_that_is_none_is_refused(bart, tmp_path, content):
    def broken(_, folder):
        (folder / "pytorch_model.bin").write_bytes(content)

    with pytest.raises(CheckpointError):
        load_model(str(rewritten(bart, tmp_path / "broken", broken)))


@pytest.mark.parametrize("missing", [30, 200, 5000])
def test_a_bin_file_that_is_cut_short_is_said_so(bart, tmp_path, missing):
    """Some lengths came back as OSError: Invalid argument, from a seek to before the file's begin."""

    def cut(weights, folder):
        write_bin(weights, folder)
        path = folder / "pytorch_model.bin"
        path.write_bytes(path.read_bytes()[:-missing])

    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is cut short"):
        load_model(str(rewritten(bart, tmp_path / "cut", cut)))


def test_quantized_weights_are_refused_by_name(bart, tmp_path):
    """Eight-bit files hold int8 under the plain names, and the scales under names of their own."""

    def quantize(weights, folder):
        name = "model.decoder.layers.0.fc1.weight"
        write_safetensors(weights | {name: weights[name].to(torch.int8), f"{name}_scale": torch.ones(24)}, folder)

    with pytest.raises(
        CheckpointError, match=r"decoder.layers.0.fc1.weight is stored as torch.int8, without the scales"
    ):
        load_model(str(rewritten(bart, tmp_path / "quantized", quantize)))


def test_an_index_that_names_no_files_is_refused(bart, tmp_path):
    folder = rewritten(bart, tmp_path / "shards", write_shards)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.shared.weight": None}}))
    with pytest.raises(CheckpointError, match="no weight_map of files"):
        load_model(str(folder))


def test_an_index_whose_shard_is_absent_is_refused(bart, tmp_path):
    folder = rewritten(bart, tmp_path / "shards", write_shards)
    (folder / "model-00002-of-00003.safetensors").unlink()
    for door in (load_model, describe):
        with pytest.raises(CheckpointError, match="model-00002-of-00003"):
            door(str(folder))


def test_pieces_smaller_than_a_tensor_give_the_same_model(bart, monkeypatch):
    expected = logits(bart)
    monkeypatch.setattr("batchloom.models.checkpoints.tensors.PIECE_BYTES", 100)
    assert torch.equal(logits(bart), expected)


def test_hashes_follow_contents_and_not_file_names_elsewhere(bart, tmp_path):
    same = shutil.copytree(bart, tmp_path / "same")
    assert describe(str(same)).weights_hash == describe(str(bart)).weights_hash
    changed = rewritten(bart, tmp_path / "changed", lambda w, f: write_safetensors(w | {"stray": torch.ones(1)}, f))
    assert describe(str(changed)).weights_hash != describe(str(bart)).weights_hash
    (same / "vocab.json").write_text("{}")
    assert describe(str(same)).tokenizer_hash != describe(str(bart)).tokenizer_hash
