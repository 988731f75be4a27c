"""docs/add-a-family.md, done: its two blocks of code make a family that loads, answers, is divided and counted.

The made-up Parrot has the shape of transformers' PLBart, which is not one of ours: its logits and tokens are compared.
"""

import ast
import dataclasses
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers

from batchloom.models import Engine, Footprint, GenerationParams, describe, load_model, load_tokenizer
from batchloom.models.checkpoints.loading import empty_model
from batchloom.models.families import table
from batchloom.models.families.config import ModelConfig
from batchloom.models.families.family import Family, TokenizerHabits
from batchloom.models.families.reading import read_config
from batchloom.models.ranks.group import TensorParallel

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/add-a-family.md").read_text()
SIZES = {
    "vocab_size": 83, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 40, "max_position_embeddings": 30,
}  # fmt: skip
HEADS = ("Model", "ForConditionalGeneration", "ForCausalLM", "ForSequenceClassification")


@pytest.fixture(autouse=True)
def parrot(monkeypatch):
    """The family, by the page: a module of the first block, and the record of the second in the table."""
    file, record = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    module = types.ModuleType("batchloom.models.families.parrot")
    exec(file, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = dict(vars(table))
    exec(record, names)
    monkeypatch.setitem(table.FAMILIES, "parrot", names["PARROT"])
    return names["PARROT"]


@pytest.fixture
def pair(tmp_path):
    """pair(head) -> (a tiny random PLBart, the folder of the Parrot that it becomes by two names in config.json)."""

    def make(head):
        torch.manual_seed(0)
        alone = {"is_encoder_decoder": False, "is_decoder": True} if head == "ForCausalLM" else {}
        config = transformers.PLBartConfig(**SIZES, **alone)
        reference = getattr(transformers, f"PLBart{head}")(config).eval()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        reference.save_pretrained(tmp_path)
        raw = json.loads((tmp_path / "config.json").read_text())
        raw |= {"model_type": "parrot", "architectures": [f"Parrot{head}"]}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return reference, tmp_path

    return make


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_the_references(pair, head):
    reference, folder = pair(head)
    model = load_model(str(folder))
    assert type(model).__name__ == f"Parrot{head}"
    ids = torch.tensor([[5, 9, 70, 33, 2, 81], [7, 60, 61, 4, 2, 80]])
    with torch.no_grad():
        expected = reference(ids, use_cache=False)
    expected = expected.last_hidden_state if head == "Model" else expected.logits
    assert torch.allclose(model(ids), expected, atol=2e-5)  # the bound of tests/parity/test_logits.py


@pytest.mark.parametrize("num_beams", [1, 3])
def test_tokens_are_the_references(pair, num_beams):
    reference, folder = pair("ForConditionalGeneration")
    prompt = [5, 9, 70, 33, 2, 81]
    options = {"num_beams": num_beams, "max_new_tokens": 9, "decoder_start_token_id": 81, "no_repeat_ngram_size": 2}
    with torch.no_grad():
        expected = reference.generate(torch.tensor([prompt]), **options)[0, 1:].tolist()
    (answer,) = Engine(load_model(str(folder))).generate([prompt], GenerationParams(**options))
    assert answer.outputs[0].token_ids == expected


@pytest.mark.parametrize("size", [1, 2])
def test_its_bytes_are_counted(parrot, size):
    for architecture in parrot.architectures:
        config = read_config({"model_type": "parrot", **SIZES}, "the test")
        model = empty_model(architecture, config, TensorParallel(size=size), torch.device("cpu"), torch.float32)
        footprint = Footprint(config=config, architecture=architecture, num_ranks=size)
        assert footprint.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())


def test_a_job_knows_it_and_its_tokenizer(pair):
    _, folder = pair("ForConditionalGeneration")
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ParrotTokenizer"}))
    assert load_tokenizer(folder).encode_batch(["ab"]) == [[0, 4, 5, 2]]
    checkpoint = describe(str(folder))
    assert checkpoint.family.model_type == "parrot"
    assert checkpoint.has_encoder
    assert checkpoint.max_positions == 30


def test_the_page_explains_every_field():
    explained = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert explained == {field.name for record in (Family, TokenizerHabits) for field in dataclasses.fields(record)}


def test_no_code_outside_the_families_names_one():
    """Families were told apart in 15 places of 10 files: by model_type, by isinstance of a configuration."""
    folder = ROOT / "models/families"
    kinds = {config.__name__ for config in ModelConfig.__subclasses__()}
    named = {*table.FAMILIES, *table.architectures(), *(family.prefix for family in table.FAMILIES.values())}
    wrong = []
    for path in (path for room in ("models", "pipelines", "jobs") for path in (ROOT / room).rglob("*.py")):
        if folder in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_name = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in named
            if is_name or (isinstance(node, ast.Name) and node.id in kinds):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong
