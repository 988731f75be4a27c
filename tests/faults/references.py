"""The two jobs that faults are injected into, and their right answers: a generation and a classification.

The answers are those of one undisturbed run; for a sample they are compared with transformers'.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.oracle import Row, is_as_expected
from tests.faults.scene import ROWS_PER_GROUP, ROWS_PER_PART, Bucket, Scene
from tests.faults.table import When

GENERATION = {"num_beams": 1, "max_length": 40, "min_length": 30}
TASKS: dict[str, dict[str, Any]] = {
    "summarization": {"generation": GENERATION},
    "text-classification": {},
}
SHARDS = {"a": 54, "b": 48, "c": 18}  # rows
NUM_SAMPLED = 6
POISON_BYTE = "â"  # how byte-level BPE writes the first of the bytes of "☠"; no other text has it


@dataclass
class Reference:
    """A job that ended well, as a folder to copy, and its answers by id."""

    task: str
    folder: Path
    """Where its scenes are played, one at a time: input, model and output keep their paths, so that runs resume."""
    job: dict[str, Any]
    poison_token: int
    answers: dict[int, Row] = field(default_factory=dict)

    @property
    def kept(self) -> Path:
        """What scenes are copied from."""
        return self.folder.with_suffix(".kept")

    def answer(self, environment: dict[str, str]) -> None:
        """Run the job once, undisturbed, and keep its output and its answers."""
        scene = self.scene(When.BEFORE, environment)
        end = scene.wait(scene.start())
        assert end.code == 0, end.printed
        rows = {row["id"]: row for row in scene.rows()}
        assert len(rows) == sum(SHARDS.values())
        for row_id, answer in self.reference_answers(sorted(rows)[:: len(rows) // NUM_SAMPLED]).items():
            assert is_as_expected(rows[row_id], answer), f"{rows[row_id]} is not what transformers says: {answer}"
        self.answers = {row_id: {k: v for k, v in row.items() if k != "error"} for row_id, row in rows.items()}
        shutil.copytree(scene.output, self.kept / "out")
        scene.remove()

    def reference_answers(self, row_ids: Collection[int] | None = None) -> dict[int, Row]:
        """Return what transformers answers to these rows (None: all)."""
        table = pq.read_table(self.kept / "corpus")
        texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
        ask = _summaries if self.task == "summarization" else _labels
        chosen = sorted(texts) if row_ids is None else row_ids
        return dict(zip(chosen, ask(self.kept / "model", [texts[row_id] for row_id in chosen]), strict=True))

    def scene(self, when: When, environment: dict[str, str], bucket: Bucket | None = None) -> Scene:
        """Return the job as a fault is to find it."""
        shutil.copytree(self.kept, self.folder)
        places = {name: str(self.folder / name) for name in ("corpus", "model", "out")}
        if bucket is not None:
            places = bucket.fill(self.folder)
        job = {
            **self.job,
            "model": places["model"],
            "input": {"paths": [places["corpus"]], "rows_per_unit": ROWS_PER_GROUP},
            "output": {"path": places["out"], "rows_per_part": ROWS_PER_PART},
        }
        scene = Scene(self.folder, job, dict(self.answers), environment, bucket)
        if when in (When.BEFORE, When.RUNNING):
            shutil.rmtree(scene.output, ignore_errors=True)
        if when is When.UNFINISHED:
            scene.open_again()
        return scene


def make(checkpoint: Path, make_sentences: Callable[..., list[str]], folder: Path) -> dict[str, Reference]:
    """Write inputs and models of both jobs."""
    made = {}
    for task, keys in TASKS.items():
        made[task] = Reference(task, folder / task, {"task": task, **keys}, _poison_token(checkpoint))
        root = made[task].kept
        (root / "corpus").mkdir(parents=True)
        start = 0
        for name, num_rows in SHARDS.items():
            texts = make_sentences(num_rows, seed=start)
            ids = list(range(start, start + num_rows))
            table = pa.table({"id": ids, "text": texts, "note": [f"note {i}" if i % 3 else None for i in ids]})
            groups = ROWS_PER_GROUP * (2 if name == "b" else 1)  # the units of b are slices of its row groups
            pq.write_table(table, root / "corpus" / f"{name}.parquet", row_group_size=groups)
            start += num_rows
        shutil.copytree(checkpoint, root / "model")
        if task == "text-classification":
            _save_classifier(root / "model")
    return made


def _poison_token(checkpoint: Path) -> int:
    token: int = json.loads((checkpoint / "vocab.json").read_text())[POISON_BYTE]
    return token


def _save_classifier(folder: Path) -> None:
    import torch
    from transformers import BartConfig, BartForSequenceClassification

    torch.manual_seed(1)
    config = BartConfig.from_pretrained(folder, num_labels=3)
    model = BartForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classification_head.out_proj.weight, std=0.5)
    (folder / "generation_config.json").unlink()
    model.save_pretrained(folder)


def _summaries(model_folder: Path, texts: Sequence[str]) -> Iterator[Row]:
    import transformers

    tokenizer = transformers.BartTokenizerFast.from_pretrained(model_folder)
    model = transformers.BartForConditionalGeneration.from_pretrained(model_folder).eval()
    for text in texts:
        (tokens,) = model.generate(tokenizer(text, return_tensors="pt")["input_ids"], **GENERATION)
        yield {"summary_text": tokenizer.decode(tokens, skip_special_tokens=True)}


def _labels(model_folder: Path, texts: Sequence[str]) -> Iterator[Row]:
    import transformers

    tokenizer = transformers.BartTokenizerFast.from_pretrained(model_folder)
    model = transformers.BartForSequenceClassification.from_pretrained(model_folder)
    ask = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, device="cpu")
    for text in texts:
        (scores,) = ask([text])
        yield {"label": scores[0]["label"], "scores": scores}
