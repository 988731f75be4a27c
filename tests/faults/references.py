"""The two jobs that faults are injected into, and their right answers: a generation and a classification.

The answers are those of one undisturbed run; for a sample they are compared with transformers'.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.oracle import TOLERANCE, Row, read_rows
from tests.faults.scene import ROWS_PER_GROUP, Bucket, Scene
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
    def _kept(self) -> Path:
        return self.folder.with_suffix(".kept")

    def answer(self, environment: dict[str, str]) -> None:
        """Run the job once, undisturbed, and keep its folder."""
        shutil.copytree(self.folder, self._kept)
        scene = self._scene(environment, None)
        end = scene.wait(scene.start())
        assert end.code == 0, end.printed
        self.answers = {row["id"]: {k: v for k, v in row.items() if k != "error"} for row in self._rows(self.folder)}
        assert all(row["error"] is None for row in self._rows(self.folder))
        assert len(self.answers) == sum(SHARDS.values())
        compare_with_transformers(self.task, self.folder, self.answers)
        shutil.copytree(self.folder / "out", self._kept / "out")
        shutil.rmtree(self.folder)

    def _rows(self, folder: Path) -> list[Row]:
        return list(read_rows(fsspec.filesystem("file"), str(folder / "out")))

    def scene(self, when: When, environment: dict[str, str], bucket: Bucket | None) -> Scene:
        """Return the job as a fault is to find it."""
        shutil.copytree(self._kept, self.folder)
        scene = self._scene(environment, bucket)
        if when in (When.BEFORE, When.RUNNING):
            shutil.rmtree(scene.output)
        if when is When.UNFINISHED:
            (scene.output / "_SUCCESS").unlink()
            (scene.output / "_batchloom" / "manifest.json").unlink()
            for part in scene.some_parts(4)[::3]:
                part.unlink()
        return scene

    def _scene(self, environment: dict[str, str], bucket: Bucket | None) -> Scene:
        places = {"input": str(self.folder / "corpus"), "output": str(self.folder / "out")}
        options: dict[str, Any] = {}
        if bucket is not None:
            places = bucket.fresh(self.folder / "corpus")
            options = {"storage_options": bucket.jobs_options}
        job = {
            **self.job,
            "model": str(self.folder / "model"),
            "input": {"paths": [places["input"]], "rows_per_unit": ROWS_PER_GROUP, **options},
            "output": {"path": places["output"], **options},
        }
        return Scene(self.folder, job, dict(self.answers), environment, bucket)


def make(checkpoint: Path, make_sentences: Callable[..., list[str]], folder: Path) -> dict[str, Reference]:
    """Write inputs and models of both jobs."""
    made = {}
    for task, keys in TASKS.items():
        root = folder / task
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
        made[task] = Reference(task, root, {"task": task, **keys}, _poison_token(checkpoint))
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


def compare_with_transformers(task: str, folder: Path, answers: dict[int, Row]) -> None:
    """Compare some answers with those of transformers on the same checkpoint."""
    import torch
    import transformers

    tokenizer = transformers.BartTokenizerFast.from_pretrained(folder / "model")
    table = pq.read_table(folder / "corpus")
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    sampled = sorted(texts)[:: len(texts) // NUM_SAMPLED]
    if task == "summarization":
        model = transformers.BartForConditionalGeneration.from_pretrained(folder / "model").eval()
        for row_id in sampled:
            ids = tokenizer(texts[row_id], return_tensors="pt")["input_ids"]
            (tokens,) = model.generate(ids, **GENERATION)
            assert tokenizer.decode(tokens, skip_special_tokens=True) == answers[row_id]["summary_text"]
        return
    model = transformers.BartForSequenceClassification.from_pretrained(folder / "model").eval()
    for row_id in sampled:
        with torch.no_grad():
            logits = model(**tokenizer(texts[row_id], return_tensors="pt")).logits[0]
        best = int(logits.argmax())
        answer = answers[row_id]
        assert model.config.id2label[best] == answer["label"]
        assert abs(answer["scores"][0]["score"] - float(logits.softmax(-1)[best])) < TOLERANCE
