"""Feature extraction against the reference's pipeline, pooled here, and against the outputs of its models."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
import torch
import transformers

from batchloom import models, pipelines
from batchloom.pipelines.config import EngineConfig, InputConfig, JobConfig, OutputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.planning.planner import plan
from batchloom.pipelines.planning.units import Size
from batchloom.pipelines.tasks import TaskSpec, create_task


def reference(folder, texts):
    """Hidden states [T, D] of each text."""
    tokenizer = (
        transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        if "bloom" in transformers.AutoConfig.from_pretrained(folder).model_type
        else transformers.BartTokenizerFast.from_pretrained(folder)
    )
    model = transformers.AutoModel.from_pretrained(folder)
    pipeline = transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    return [np.array(pipeline(text)[0]) for text in texts]


POOLED = {"mean": lambda hidden: hidden.mean(0), "cls": lambda hidden: hidden[0], "last": lambda hidden: hidden[-1]}


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("architecture", ["BartModel", "BartForConditionalGeneration", "BloomForCausalLM"])
def test_embeddings_are_the_pooled_states_of_the_pipeline(
    ask, equal, make_checkpoint, make_sentences, architecture, pooling
):
    model, texts = make_checkpoint(architecture), make_sentences(6, seed=13, longest=20)
    part = ask("feature-extraction", model, {"text": [*texts, " "]}, options={"pooling": pooling})
    expected = [POOLED[pooling](hidden).tolist() for hidden in reference(model, texts)]
    assert part["embedding"][6].as_py() is None
    equal("feature-extraction", part["embedding"].to_pylist()[:6], expected, 2e-5)


def test_normalized_embeddings_have_length_one_and_can_be_halves(ask, make_checkpoint, make_sentences):
    options = {"normalize": True, "dtype": "float16"}
    part = ask("feature-extraction", make_checkpoint("BartModel"), {"text": make_sentences(4)}, options=options)
    assert part.schema.field("embedding").type == pa.list_(pa.float16())
    lengths = np.linalg.norm(np.array(part["embedding"].to_pylist(), dtype=np.float32), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)


# As the first test of this page: float32 sums in another order, of states of a size near 1.
CLOSE = 2e-5
STACKS = [
    ("BartModel", "encoder"),
    ("BartModel", "decoder"),
    ("BartForSequenceClassification", "encoder"),
    ("BlenderbotSmallForConditionalGeneration", "encoder"),
    ("BloomForCausalLM", "decoder"),
]


def outputs(folder, texts, stack):
    """{hidden_states [layers + 1, T, D], attentions [layers, H, T, T], ...} of the reference, for each text."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    found = []
    for ids in models.load_tokenizer(folder).encode_batch(texts):
        ids = torch.tensor([ids])
        reply = {"decoder_input_ids": ids} if "blenderbot" in config.model_type else {}
        with torch.no_grad():
            told = model(ids, output_hidden_states=True, output_attentions=True, **reply)
        prefix = "" if config.model_type == "bloom" else f"{stack}_"
        names = {"hidden_states": f"{prefix}hidden_states", "attentions": f"{prefix}attentions"}
        if prefix == "decoder_":
            names["cross_attentions"] = "cross_attentions"
        found.append({name: torch.cat(told[own]).numpy() for name, own in names.items()} | {"tokens": ids[0].tolist()})
    return found


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize(("architecture", "stack"), STACKS)
def test_vectors_of_a_layer_and_stack_are_the_references(
    ask, equal, make_checkpoint, make_sentences, architecture, stack, layer
):
    model, texts = make_checkpoint(architecture), make_sentences(5, seed=17, longest=16)
    options = {"stack": stack, "layer": layer, "pooling": ["last", "mean"]}
    part = ask("feature-extraction", model, {"text": [*texts, None]}, options=options)
    assert part.column_names[:2] == ["embedding_last", "embedding_mean"]
    theirs = [own["hidden_states"][layer] for own in outputs(model, texts, stack)]
    for pooling in ("last", "mean"):
        column = part[f"embedding_{pooling}"].to_pylist()
        assert column[5] is None
        equal("feature-extraction", column[:5], [POOLED[pooling](own).tolist() for own in theirs], CLOSE)


@pytest.mark.parametrize(("architecture", "stack"), STACKS)
def test_states_of_each_token_and_weights_are_the_references(
    ask, equal, make_checkpoint, make_sentences, architecture, stack
):
    model, texts = make_checkpoint(architecture), make_sentences(5, seed=18, longest=16)
    options = {"stack": stack, "pooling": "none", "hidden_states": True, "attentions": True}
    part = ask("feature-extraction", model, {"text": [texts[0], " ", *texts[1:], texts[2]]}, options=options)
    theirs = outputs(model, [*texts, texts[2]], stack)
    assert part.schema.field("embedding").type == pa.list_(pa.list_(pa.float32()))
    answered = part.filter(pa.compute.is_null(part["error"]))
    assert len(answered) == 6
    assert answered["tokens"].to_pylist() == [own["tokens"] for own in theirs]
    last = [own["hidden_states"][-1].tolist() for own in theirs]
    equal("feature-extraction", answered["embedding"].to_pylist(), last, CLOSE)
    for name in ("hidden_states", "attentions", "cross_attentions"):
        if name in theirs[0]:
            equal("feature-extraction", answered[name].to_pylist(), [own[name].tolist() for own in theirs], CLOSE)
        else:
            assert name not in part.column_names
    assert part["num_output_tokens"].to_pylist() == [0] * 7


def test_states_of_each_token_are_the_pipelines(ask, equal, make_checkpoint, make_sentences):
    model, texts = make_checkpoint("BartModel"), make_sentences(4, seed=19, longest=16)
    part = ask("feature-extraction", model, {"text": texts}, options={"pooling": "none"})
    equal("feature-extraction", part["embedding"].to_pylist(), [own.tolist() for own in reference(model, texts)], CLOSE)


def test_normalized_halves_of_each_token(ask, make_checkpoint, make_sentences):
    options = {"pooling": ["none", "cls"], "normalize": True, "dtype": "float16"}
    part = ask("feature-extraction", make_checkpoint("BartModel"), {"text": make_sentences(3)}, options=options)
    assert part.schema.field("embedding_none").type == pa.list_(pa.list_(pa.float16()))
    assert part.schema.field("embedding_cls").type == pa.list_(pa.float16())
    for states, first in zip(part["embedding_none"].to_pylist(), part["embedding_cls"].to_pylist(), strict=True):
        # 11 bits of a float16, 32 numbers that are squared
        np.testing.assert_allclose(np.linalg.norm(np.array(states, np.float32), axis=1), 1, atol=2e-3)
        assert states[0] == first


def test_halves_that_overflow_say_which_dtype_holds_them(ask, make_checkpoint, tmp_path):
    """65,504 is the largest number of float16."""
    model = transformers.BloomModel.from_pretrained(make_checkpoint("BloomModel"))
    model.ln_f.weight.data.mul_(1e6)
    shutil.copytree(make_checkpoint("BloomModel"), tmp_path, dirs_exist_ok=True)
    model.save_pretrained(tmp_path)
    whole = ask("feature-extraction", str(tmp_path), {"text": ["A river."]})
    assert whole["error"].null_count == 1
    half = ask("feature-extraction", str(tmp_path), {"text": ["A river."]}, options={"dtype": "float16"})
    assert "set task_options.dtype to float32" in half["error"][0].as_py()["message"]


def test_an_empty_list_of_poolings_leaves_vectors_out(ask, make_checkpoint):
    options = {"pooling": [], "hidden_states": True}
    part = ask("feature-extraction", make_checkpoint("BloomModel"), {"text": ["The river."]}, options=options)
    assert part.column_names[:3] == ["hidden_states", "tokens", "num_input_tokens"]


def test_a_row_that_is_too_large_is_an_error_with_its_size_and_the_limit(ask, make_checkpoint, error_kinds):
    """32 numbers of 4 bytes a token; 20 tokens are taken."""
    model, long = make_checkpoint("BloomModel"), "The river. " * 20
    num_tokens = len(models.load_tokenizer(model).encode_batch([long])[0])
    options = {"pooling": "none", "max_row_bytes": 20 * 32 * 4 + 5}
    part = ask("feature-extraction", model, {"text": ["The river.", long, None]}, options=options)
    assert error_kinds(part) == [None, "too_large", "null_text"]
    assert part["error"][1].as_py() == {
        "stage": "prepare", "kind": "too_large",
        "message": f"{num_tokens} tokens have {num_tokens * 128:,} bytes of embedding; 2,565 are taken at most, "
        "those of 20 tokens. Set task_options.max_length, ask for less, or raise task_options.max_row_bytes.",
    }  # fmt: skip
    assert part["num_input_tokens"].to_pylist()[1:] == [0, 0]
    cut = ask("feature-extraction", model, {"text": [long]}, options={**options, "max_length": 20})
    assert (error_kinds(cut), len(cut["tokens"][0])) == ([None], 20)
    halves = ask(
        "feature-extraction", model, {"text": [long]}, options={**options, "dtype": "float16", "max_length": 40}
    )
    assert (error_kinds(halves), len(halves["embedding"][0])) == ([None], 40)


def made(model, **options):
    return create_task(
        TaskSpec(
            task="feature-extraction", input=InputConfig(paths=()), options=options, generation={},
            checkpoint=models.describe(model),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "options", "words"),
    [
        ("BartModel", {"layer": 3}, r"task_options.layer = 3 is none of the decoder's: .* 0 .* to 2 .*, or -3 to -1"),
        ("BloomModel", {"stack": "encoder"}, r"task_options.stack = 'encoder': the model has no encoder"),
        ("BlenderbotModel", {"stack": "decoder"}, "task_options.stack = 'decoder': the decoder of a blenderbot model"),
        ("BartModel", {"pooling": ["mean", "mean"]}, "task_options.pooling: names one twice in mean, mean"),
        ("BartModel", {"pooling": []}, "task_options.pooling: is an empty list, and nothing else"),
        ("BartModel", {"pooling": "max"}, "of mean, cls, last, none or a list of mean, cls, last, none; found 'max'"),
        ("BartModel", {"pooling": ["max"]}, r"must be one of mean, .*; found \['max'\]"),
        ("BartModel", {"layer": True}, "task_options.layer: must be a whole number; found True"),
        ("BartModel", {"max_row_bytes": 1 << 31}, "is 2,147,483,648, must be from 1 to 1,073,741,824"),
        # <s> and </s>: two tokens of three states of 32 numbers
        ("BartModel", {"pooling": [], "hidden_states": True, "max_row_bytes": 767},
         "is 767, and a row of 2 tokens, the fewest that there are, has 768 bytes of hidden_states"),
        ("BloomModel", {"max_row_bytes": 127}, "is 127, and a row of 1 tokens, .*, has 128 bytes of embedding"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make_checkpoint, architecture, options, words):
    with pytest.raises(ConfigError, match=words):
        made(make_checkpoint(architecture), **options)


def test_a_layer_from_the_end_is_the_same_job(make_checkpoint):
    """What is left out is written down as what it means."""
    model = make_checkpoint("BartModel")
    settings = made(model).settings()
    assert (settings["stack"], settings["layer"], settings["pooling"]) == ("decoder", 2, "mean")
    assert settings == made(model, stack="decoder", layer=2).settings()
    assert settings != made(model, stack="encoder", layer=2).settings()


def job(model, folder, **options):
    return JobConfig(
        task="feature-extraction", model=model, input=InputConfig(paths=(str(folder / "in"),), keep_columns=("id",)),
        output=OutputConfig(path=str(folder / "out")), task_options=options,
        engine=EngineConfig(dtype="float32", device="cpu"),
    )  # fmt: skip


@pytest.fixture
def corpus(tmp_path, make_sentences):
    """60 texts, a null, and one of them long."""
    texts = [*make_sentences(60, seed=20), None, "The river. " * 200]
    (tmp_path / "in").mkdir()
    table = pa.table({"id": range(62), "text": texts})
    pa.parquet.write_table(table, tmp_path / "in" / "shard.parquet")
    return table


def test_units_and_parts_are_smaller_where_answers_are_larger(make_checkpoint, corpus, tmp_path):  # noqa: ARG001
    model = make_checkpoint("BloomModel")
    vectors, states = plan(job(model, tmp_path)), plan(job(model, tmp_path, pooling="none"))
    assert vectors.unit_size == Size(1024, 1 << 25)
    # 128 bytes a token: a unit of 2 MiB of text has 256 MiB at most, and 32 of the largest rows 2 GiB
    assert states.unit_size == states.part_size == Size(32, 1 << 21)
    short = plan(job(model, tmp_path, pooling="none", max_length=100))
    assert short.unit_size == Size(1024, 1 << 21)
    # 2 layers of 4 heads: 32 bytes for each pair of 100 tokens
    weights = plan(job(model, tmp_path, pooling=[], attentions=True, max_length=100))
    assert weights.unit_size == Size(1024, (1 << 28) // 3200)
    assert weights.part_size == Size((1 << 31) // (32 * 100 * 100), (1 << 28) // 3200)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_job_of_states_runs_and_answers_as_without_ray(
    ask, make_checkpoint, corpus, output_table, tmp_path, monkeypatch, format
):
    """With room for a few rows in a unit, one of which is too large."""
    options = {"pooling": ["mean", "none"], "hidden_states": True, "stack": "encoder", "max_row_bytes": 60_000}
    model = make_checkpoint("BartModel")
    monkeypatch.setattr("batchloom.pipelines.planning.job_plan.ANSWER_BYTES", 1 << 20)
    config = job(model, tmp_path, **options)
    config = replace(config, output=replace(config.output, format=format))
    assert len(plan(config).parts) > 3
    manifest = pipelines.run(config)
    assert manifest.errors_by_kind == {"null_text": 1, "too_large": 1}
    assert pipelines.verify(config.output.path).ok
    found = output_table(config.output.path) if format == "parquet" else lines_of(config.output.path)
    alone = ask("feature-extraction", model, {"text": corpus["text"]}, options=options)
    for name in ("tokens", "num_input_tokens", "error"):
        assert found[name].to_pylist() == alone[name].to_pylist()
    for name in ("embedding_mean", "embedding_none", "hidden_states"):
        for ours, other in zip(found[name].to_pylist(), alone[name].to_pylist(), strict=True):
            # sums of float32 depend on the shape of the batch
            assert ours is other is None or np.abs(np.array(ours) - np.array(other)).max() < CLOSE


def lines_of(folder):
    """The rows of an output of JSON Lines, in the order of ids."""
    rows = [
        json.loads(line)
        for path in Path(folder).glob("part-*.jsonl.gz")
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]))


@pytest.mark.parametrize("architecture", ["BartForCausalLM", "BlenderbotForCausalLM", "BlenderbotSmallForCausalLM"])
def test_a_decoder_alone_gives_its_states(ask, equal, make_checkpoint, make_sentences, architecture):
    """It was planned as the bare model of its family, whose encoder is in no file."""
    model, texts = make_checkpoint(architecture), make_sentences(4, seed=77, longest=9)
    part = ask("feature-extraction", model, {"text": texts})
    reference = getattr(transformers, architecture).from_pretrained(model).eval()
    for vector, ids in zip(
        part["embedding"].to_pylist(), models.load_tokenizer(model).encode_batch(texts), strict=True
    ):
        with torch.no_grad():
            states = reference(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        equal("feature-extraction", [vector], [states.mean(0).tolist()], 2e-5)
    with pytest.raises(ConfigError, match="the model has no encoder"):
        ask("feature-extraction", model, {"text": texts}, options={"stack": "encoder"})
