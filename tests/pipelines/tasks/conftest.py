"""Tasks without Ray: the same stages, called one after the other; tiny random checkpoints of every architecture."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchloom import models
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.replica import start_replica
from batchloom.pipelines.stages.infer import answer
from batchloom.pipelines.stages.tokenize import Tokenize, bucket_tokens
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.stages.write import Write
from batchloom.pipelines.tasks import TaskSpec, create_task

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128, "init_std": 0.4,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
BLOOM = {
    "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="session")
def byte_bpe(tmp_path_factory: pytest.TempPathFactory, make_sentences: Callable[..., list[str]]) -> Path:
    """vocab.json and merges.txt, learnt from the corpus of the tests."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("byte_bpe")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(make_sentences(500), vocab_size=400, special_tokens=SPECIAL_TOKENS, show_progress=False)
    bpe.save_model(str(folder))
    return folder


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, byte_bpe: Path) -> Callable[..., str]:
    """make_checkpoint("BartForQuestionAnswering", **config) -> folder in hub format, made once for each wish."""
    made: dict[str, str] = {}

    def make(architecture: str, tokenizer: Path | None = None, **config: Any) -> str:
        wish = json.dumps([architecture, str(tokenizer), config], sort_keys=True)
        if wish not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            made[wish] = _save(folder, architecture, config, tokenizer or byte_bpe, tokenizer is not None)
        return made[wish]

    return make


def _save(folder: Path, architecture: str, config: Mapping[str, Any], tokenizer: Path, is_real: bool) -> str:
    import torch
    import transformers

    vocabulary = json.loads((tokenizer / "vocab.json").read_text())
    family = architecture.partition("For")[0].removesuffix("Model")
    settings = {**(BLOOM if family == "Bloom" else BART), "vocab_size": len(vocabulary), **config}
    if family == "BlenderbotSmall" and not is_real:
        settings["vocab_size"] = _save_small_tokenizer(folder)
    elif family == "Bloom":
        _save_bloom_tokenizer(folder, tokenizer)
    else:
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**settings)).eval()
    with torch.no_grad():  # the library's small or zero biases and heads would make all answers alike
        for name, parameter in model.named_parameters():
            if any(head in name for head in ("score", "classifier", "qa_outputs", "classification_head")):
                parameter.normal_(0.0, 0.5)
    model.save_pretrained(folder)
    return str(folder)


def _save_bloom_tokenizer(folder: Path, byte_bpe: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers import models as tokenizer_models

    backend = Tokenizer(tokenizer_models.BPE.from_file(str(byte_bpe / "vocab.json"), str(byte_bpe / "merges.txt")))
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.save(str(folder / "tokenizer.json"))
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    roles["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def _save_small_tokenizer(folder: Path) -> int:
    """Letters alone: every word is its letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["__start__", "__null__", "__end__", "__unk__", "__newln__"]  # in the order of BART's ids
    tokens = [*special, *".,!?'", *letters, *(letter + "@@" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n_ _\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BlenderbotSmallTokenizer"}))
    return len(tokens)


NLI = {
    "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
    "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
}
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "summarization": ("BartForConditionalGeneration", {}),
    "text-generation": ("BloomForCausalLM", {}),
    "text2text-generation": ("BartForConditionalGeneration", {}),
    "conversational": ("BlenderbotForConditionalGeneration", {}),
    "zero-shot-classification": ("BartForSequenceClassification", NLI),
    "text-classification": ("BloomForSequenceClassification", {"num_labels": 4}),
    "token-classification": ("BloomForTokenClassification", {"num_labels": 3}),
    "question-answering": ("BartForQuestionAnswering", {"max_position_embeddings": 512}),
    "fill-mask": ("BartForConditionalGeneration", {}),
    "feature-extraction": ("BloomModel", {}),
    "perplexity": ("BloomForCausalLM", {}),
    "scoring": ("BartForConditionalGeneration", {}),
}


@pytest.fixture(scope="session")
def model_of(make_checkpoint: Callable[..., str]) -> Callable[[str], str]:
    """A checkpoint that a task can be done with."""

    def make(task: str) -> str:
        architecture, config = MODELS[task]
        return make_checkpoint(architecture, **config)

    return make


Ask = Callable[..., pa.Table]


@pytest.fixture(scope="session")
def ask() -> Ask:
    """ask(task, model, columns, options=..., generation=..., input=...) -> the part that the job would write."""

    def ask_task(
        task: str,
        model: str,
        columns: Mapping[str, Any],
        *,
        options: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
        compute_once: bool = True,
        changes: Mapping[str, Any] | None = None,
        device: str = "cpu",
        **input_columns: str | None,
    ) -> pa.Table:
        checkpoint = models.describe(model, task=task, changes=changes)
        made = create_task(
            TaskSpec(
                task=task,
                input=InputConfig(paths=(), **input_columns),
                options=options or {},
                generation=generation or {},
                checkpoint=checkpoint,
            )
        )
        rows = pa.table(columns)
        unit = Unit("unit", ((0, rows.num_rows),), (Span("shard", "v", 0, rows.num_rows),), is_whole=False)
        errors = pa.nulls(rows.num_rows, pa.struct([(name, pa.string()) for name in ("stage", "kind", "message")]))
        work = Work(unit=unit, rows=rows.append_column("error", errors))
        tokenizer = models.load_tokenizer(model)
        work = Tokenize(made, model, bucket_tokens(made, 4096, device), compute_once).prepare(work, tokenizer)
        work = Work.from_batch(work.to_batch())  # as Ray would carry it
        settings = {"dtype": "float32", "device": device, "num_threads": 1, "max_batch_tokens": 4096, "seed": 0}
        replica = start_replica(task=made, model=checkpoint.pinned, **settings)
        assert work.requests is not None
        work = work.with_results(answer(replica, made, unit, work.requests, tokenizer), replica.activity().measures())
        work = Work.from_batch(work.to_batch())
        part = Write(made, model, None).finish(work, tokenizer)
        assert part.num_rows == rows.num_rows
        part.validate(full=True)
        return part

    return ask_task


HELD: dict[str, list[float]] = {}  # by task: rows held to the reference, largest difference


@pytest.fixture(scope="session")
def equal() -> Callable[..., None]:
    """equal(task, ours, theirs, tolerance): row by row, floats within the tolerance, all else the same; noted."""

    def compare(task: str, ours: list[Any], theirs: list[Any], tolerance: float = 0.0) -> None:
        assert len(ours) == len(theirs)
        differences = [difference(mine, other) for mine, other in zip(ours, theirs, strict=True)]
        held = HELD.setdefault(task, [0, 0.0])
        held[0], held[1] = held[0] + len(ours), max(held[1], *differences)
        assert max(differences) <= tolerance

    return compare


def difference(mine: Any, other: Any) -> float:
    """The largest difference of two floats in two values that are the same in all else."""
    if isinstance(mine, dict):
        assert set(mine) == set(other)
        return max(difference(mine[name], other[name]) for name in mine)
    if isinstance(mine, list | tuple):
        assert len(mine) == len(other)
        return max((difference(*pair) for pair in zip(mine, other, strict=True)), default=0.0)
    if isinstance(mine, float):
        return abs(mine - float(other))
    assert mine == other
    return 0.0


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if HELD:
        terminalreporter.section("tasks held to the reference: rows, largest difference of a number")
    for task, (rows, largest) in sorted(HELD.items()):
        terminalreporter.line(f"{task:26} {rows:5} {largest:9.1e}")


def kinds(part: pa.Table) -> list[str | None]:
    """The kind of each row's error."""
    return [error and error["kind"] for error in part["error"].to_pylist()]


@pytest.fixture(scope="session")
def error_kinds() -> Callable[[pa.Table], list[str | None]]:
    return kinds


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Public tokenizers and corpora beside the checkout."""
    default = Path(__file__).parents[3].parent / "shared" / "data"
    folder = Path(os.environ.get("BATCHLOOM_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data: set BATCHLOOM_REAL_DATA, or put it into ../shared/data beside the checkout")
    return folder
