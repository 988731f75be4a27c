"""Each call of transformers in docs/migration.md gives what the job beside it gives: both are run.

The pages' checkpoints are tiny random ones here. Pipelines that transformers 5 removed are stood for by what they did.
"""

import ast
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from batchloom import models
from batchloom.jobs import spec

PAGE = (Path(__file__).resolve().parents[3] / "docs/migration.md").read_text()
PAIRS = {
    f"{heading}, {number}": pair
    for heading, section in re.findall(
        r"^## (.*?)$(.*?)(?=^#|\Z)", PAGE.replace("\n# ", "\n## "), re.DOTALL | re.MULTILINE
    )
    for number, pair in enumerate(re.findall(r"```python\n(.*?)```\n```yaml\n(.*?)```", section, re.DOTALL), 1)
}

BART, BLOOM = "BartForConditionalGeneration", "BloomForCausalLM"
LONG = {"max_position_embeddings": 256}
NLI = {
    "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
    "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
}
SPEECH = {"max_length": 12, "num_beams": 2}
TEXTS = [
    "The river runs by the harbour, and the garden by the river.",
    "A ledger of units. A table of parts, a window and a zone.",
    "Query the index of the archive.",
]
MASKED = [text.replace(" the ", " <mask> ", 1).replace(" of ", " <mask> ", 1) for text in TEXTS]
MASKED = [text if text.count("<mask>") == 1 else text.replace("<mask>", "of", 1) for text in MASKED]
COLUMNS: dict[str, Any] = {
    "body": TEXTS, "prompt": TEXTS, "turns": [["Hello there.", "How is it?"], ["Hi."], ["One", "two", "three"]],
    "question": ["Where is the river?", "What is there?", "Which index?"], "context": TEXTS, "premise": TEXTS,
    "hypothesis": [text[:20] for text in reversed(TEXTS)],
    "continuation": [" The archive.", " A zone of units.", " It is."],
}  # fmt: skip


class Case(NamedTuple):
    """What a pair of the page is tried with."""

    architecture: str
    column: str
    """Of the job's answers."""
    theirs: Callable[[Any], list[Any]] = list
    """What the call gave, as that column's values."""
    ours: Callable[[Any], Any] = lambda value: value
    config: Mapping[str, Any] = MappingProxyType({})
    texts: list[str] = TEXTS
    has_copies: bool = False
    """Whether the decoder's embeddings are in the file under their own name too, as in facebook/bart-base."""


def each(*names: Any) -> Callable[[Any], list[Any]]:
    def take(value: Any) -> list[Any]:
        for_rows = []
        for row in value:
            for name in names:
                row = [one[name] for one in row] if isinstance(row, list) and isinstance(name, str) else row[name]
            for_rows.append(row)
        return for_rows

    return take


def named(entities: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entity["word"], entity["entity_group"]) for entity in entities]


def without_spaces(found: list[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """Words with their labels, of which a space alone is none, as the page says."""
    return [[(word.strip(), label) for word, label in row if word.strip()] for row in found]


def tokens(fills: list[dict[str, Any]]) -> list[int]:
    return [fill["token"] for fill in fills]


CLASSES = "BartForSequenceClassification"
CASES = {
    "summarization (removed), 1": Case(BART, "summary_text", each("summary_text"), config=LONG),
    "text2text-generation (removed), 1": Case(BART, "generated_text", each("generated_text")),
    "conversational (removed), 1": Case("BlenderbotForConditionalGeneration", "reply", config=SPEECH),
    "question-answering (removed), 1": Case("BartForQuestionAnswering", "score", config=LONG),
    "text-generation, 1": Case(BLOOM, "generated_text", each(0, "generated_text")),
    "zero-shot-classification, 1": Case(CLASSES, "scores", each("scores"), config=NLI),
    "text-classification, 1": Case(CLASSES, "scores", config={"num_labels": 4}),
    "text-classification, 2": Case(CLASSES, "scores", config=NLI),
    "token-classification, 1": Case(
        "BloomForTokenClassification",
        "entities",
        lambda value: without_spaces([named(row) for row in value]),
        named,
        {"num_labels": 3},
    ),
    "fill-mask, 1": Case(BART, "fills", each("token"), tokens, texts=MASKED),
    "feature-extraction, 1": Case("BartModel", "embedding"),
    "feature-extraction, 2": Case("BartModel", "embedding"),
    "BartForConditionalGeneration, summarization, 1": Case(BART, "summary_text"),
    "BartForConditionalGeneration, an answer that begins with a text, 1": Case(BART, "summary_text"),
    "BartForConditionalGeneration, a mask filled by logits, 1": Case(BART, "fills", ours=tokens, texts=MASKED),
    "BartForConditionalGeneration, a mask filled by generation, 1": Case(
        BART, "fills", ours=lambda fills: fills[0]["sequence"], texts=MASKED
    ),
    "BartForSequenceClassification, 1": Case(CLASSES, "label", config={"num_labels": 4}),
    "BartForQuestionAnswering, 1": Case("BartForQuestionAnswering", "score", config={"max_position_embeddings": 512}),
    "A model's loss on labels, 1": Case(BART, "perplexity", ours=math.log),
    "A model's loss on labels, 2": Case(BLOOM, "perplexity", ours=math.log),
    "BartForCausalLM and BlenderbotForCausalLM, 1": Case(BART, "generated_text", has_copies=True),
    "BartModel and BlenderbotModel, 1": Case("BartModel", "embedding"),
    "BartModel and BlenderbotModel, 2": Case("BartModel", "embedding"),
    "BartModel and BlenderbotModel, 3": Case("BartModel", "cross_attentions"),
    "BlenderbotSmallForConditionalGeneration, 1": Case(
        "BlenderbotSmallForConditionalGeneration", "reply", config=SPEECH
    ),
    "BloomForCausalLM, 1": Case(BLOOM, "generated_text"),
    "BloomForSequenceClassification, 1": Case("BloomForSequenceClassification", "label", config={"num_labels": 4}),
    "BloomForTokenClassification, 1": Case(
        "BloomForTokenClassification", "entities", without_spaces, named, {"num_labels": 3}
    ),
}


def test_every_pair_of_the_page_is_tried():
    assert set(PAIRS) == set(CASES)


def tokenizer_of(folder: str) -> Any:
    """The tiny checkpoint's, with the mask of every BART on the hub, which takes the space before it along."""
    kind, options = transformers.AutoTokenizer, {"model_input_names": ["input_ids", "attention_mask"]}
    if transformers.AutoConfig.from_pretrained(folder).model_type == "bart":
        kind, mask = transformers.BartTokenizerFast, transformers.AddedToken("<mask>", lstrip=True, special=True)
        options["mask_token"] = mask
    return kind.from_pretrained(folder, **options)


class Loaded:
    """A class of transformers that loads the tiny checkpoint, whatever name it is given."""

    def __init__(self, name: str, folder: str) -> None:
        self.kind, self.folder = getattr(transformers, name), folder

    def from_pretrained(self, _: str, **options: Any) -> Any:
        if self.kind is transformers.AutoTokenizer:
            return tokenizer_of(self.folder)
        loaded, told = self.kind.from_pretrained(self.folder, output_loading_info=True, **options)
        assert not told["missing_keys"]  # transformers makes them random, with a warning
        return loaded.eval()


class Removed:
    """What the pipelines did that transformers 5 has no more."""

    def __init__(self, task: str, folder: str) -> None:
        self.task, self.tokenizer = task, tokenizer_of(folder)
        auto = "QuestionAnswering" if task == "question-answering" else "Seq2SeqLM"
        self.model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(folder).eval()

    def __call__(self, *texts: Any, truncation: bool = False, **options: Any) -> list[Any]:
        if self.task == "question-answering":
            return [
                self._score(*pair, options["max_answer_len"])
                for pair in zip(options["question"], options["context"], strict=True)
            ]
        name = "summary_text" if self.task == "summarization" else "generated_text"
        answers = []
        for text in texts[0]:
            inputs = self.tokenizer(text, return_tensors="pt", truncation=truncation)
            decoded = self.tokenizer.batch_decode(self.model.generate(**inputs, **options), skip_special_tokens=True)
            answers.append([{name: one} for one in decoded] if len(decoded) > 1 else {name: decoded[0]})
        return answers

    def _score(self, question: str, context: str, longest: int) -> float:
        inputs = self.tokenizer(question, context, return_tensors="pt")
        outputs = self.model(**inputs)
        own = [place for place, sequence in enumerate(inputs.sequence_ids(0)) if sequence == 1]
        start, end = (logits[0, own].softmax(0) for logits in (outputs.start_logits, outputs.end_logits))
        return (start[:, None] * end).triu().tril(longest - 1).max().item()


def run_call(code: str, folder: str, case: Case) -> Any:
    """Run the call as it stands on the page and return its last expression."""

    def pipeline(task: str, model: str, **options: Any) -> Any:  # noqa: ARG001
        if task in ("summarization", "text2text-generation", "question-answering"):
            return Removed(task, folder)
        return transformers.pipeline(task, model=folder, tokenizer=tokenizer_of(folder), **options)

    names: dict[str, Any] = {
        name: Loaded(name, folder)
        for name in re.findall(r"\b((?:Auto|Bart|Blenderbot|BlenderbotSmall|Bloom)\w+)\.from_pretrained", code)
    }
    names |= {"np": np, "torch": torch, "pipeline": pipeline, "m": "mine", "texts": case.texts, "prompts": TEXTS}
    names |= {"dialogues": COLUMNS["turns"], "questions": COLUMNS["question"], "contexts": COLUMNS["context"]}
    names |= {"premises": COLUMNS["premise"], "hypotheses": COLUMNS["hypothesis"]}
    names["continuations"] = COLUMNS["continuation"]
    *statements, last = ast.parse(code).body
    assert isinstance(last, ast.Expr)
    with torch.no_grad():
        exec(compile(ast.Module(statements, []), "migration.md", "exec"), names)
        return eval(compile(ast.Expression(last.value), "migration.md", "eval"), names)


def with_copies(folder: str, copied: Path) -> str:
    """Copy a BART checkpoint and add the name under which BartForCausalLM of transformers finds its embeddings."""
    shutil.copytree(folder, copied)
    tensors = load_file(copied / "model.safetensors")
    tensors["model.decoder.embed_tokens.weight"] = tensors["model.shared.weight"].clone()
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    return str(copied)


@pytest.mark.parametrize("name", CASES)
def test_the_job_gives_what_the_call_gives(ask, equal, make_checkpoint, tmp_path, name):
    case, (code, job) = CASES[name], PAIRS[name]
    folder = make_checkpoint(case.architecture, **case.config)
    if case.has_copies:
        folder = with_copies(folder, tmp_path / "copied")
    path = tmp_path / "job.yaml"
    path.write_text(job)
    config = spec.load(str(path))
    columns = {**COLUMNS, "body": case.texts}
    read = ("text_column", "text_pair_column", "question_column", "context_column")
    part = ask(
        config.task,
        folder,
        columns,
        options=config.task_options,
        generation=config.generation,
        changes=config.model_options.changes,
        **{column: getattr(config.input, column) for column in read},
    )
    assert part["error"].null_count == len(TEXTS)
    expected = case.theirs(run_call(code, folder, case))
    equal(f"page: {config.task}", [case.ours(value) for value in part[case.column].to_pylist()], expected, 2e-5)


def test_a_decoder_that_is_planned_is_a_decoder(make_checkpoint):
    assert not models.describe(make_checkpoint(BART), changes={"architectures": ["BartForCausalLM"]}).has_encoder
