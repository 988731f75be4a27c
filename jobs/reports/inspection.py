"""What a checkpoint is, for a person who is about to write a job: classes, labels, lengths, defaults, memory."""

from dataclasses import dataclass
from typing import Any

from batchloom.jobs.reports import wording
from batchloom.models import CheckpointInfo, Footprint, check_ranks, describe
from batchloom.models.errors import DeviceError

RANKS = (1, 2, 4, 8)
DTYPES = ("float32", "bfloat16", "int8")
SHOWN_LABELS = 12


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's small files, read; its weights are not loaded."""

    model: str
    found: CheckpointInfo

    @staticmethod
    def of(model: str) -> "Inspection":
        """Raises: ModelError where there is no checkpoint that can be used."""
        return Inspection(model, describe(model))

    def values(self) -> dict[str, Any]:
        found, config = self.found, self.found.config
        return {
            "model": self.model,
            "model_type": config.model_type,
            "architecture": found.architecture,
            "architectures": list(found.family.architectures),
            "dtype": found.dtype,
            "num_parameters": self._footprint().num_parameters,
            "width": config.width,
            "encoder_layers": config.encoder.num_layers if found.has_encoder and config.encoder else None,
            "decoder_layers": config.decoder.num_layers,
            "vocab_size": config.vocab_size,
            "max_positions": found.max_positions,
            "labels": [config.id2label[column] for column in range(config.num_labels)],
            "generation_defaults": found.generation_defaults,
            "prefix": found.prefix,
            "notes": list(found.notes),
            "weights_hash": found.weights_hash,
            "tokenizer_hash": found.tokenizer_hash,
            "weight_bytes_of_rank": {
                str(ranks): {dtype: self._footprint(ranks, dtype).weight_bytes for dtype in DTYPES}
                for ranks in self._ranks()
            },
            "cache_bytes_a_token": {dtype: self._footprint(1, dtype).cached_token_bytes for dtype in DTYPES},
        }

    def words(self) -> dict[str, str]:
        values = self.values()
        layers = f"{values['encoder_layers']} encoder and " if values["encoder_layers"] else ""
        limit = values["max_positions"]
        return {
            "Model": f"{values['model_type']}, {values['num_parameters']:,} parameters in {values['dtype']}",
            "Class": f"{values['architecture']}. Also: "
            f"{', '.join(name for name in values['architectures'] if name != values['architecture'])}",
            "Size": f"{layers}{values['decoder_layers']} decoder layers, {values['width']:,} wide, "
            f"{values['vocab_size']:,} tokens in the vocabulary",
            "Length": "any" if limit is None else f"{limit:,} tokens",
            "Labels": self._labels(values["labels"]),
            "Defaults": "\n".join(f"{name}: {value}" for name, value in values["generation_defaults"].items())
            or "none",
            "Memory": "\n".join(self._memory(values)),
            **({"Note": "\n".join(values["notes"])} if values["notes"] else {}),
        }

    def _labels(self, labels: list[str]) -> str:
        more = f" and {len(labels) - SHOWN_LABELS:,} more" if len(labels) > SHOWN_LABELS else ""
        return ", ".join(labels[:SHOWN_LABELS]) + more or "none"

    def _memory(self, values: dict[str, Any]) -> list[str]:
        lines = []
        for ranks, sizes in values["weight_bytes_of_rank"].items():
            told = ", ".join(f"{wording.metric(size, 'B')} in {dtype}" for dtype, size in sizes.items())
            lines.append(f"weights {told}" + ("" if ranks == "1" else f" for each of {ranks} ranks"))
        cache = values["cache_bytes_a_token"]
        told = ", ".join(f"{wording.metric(size, 'B')} in {dtype}" for dtype, size in cache.items())
        return [*lines, f"and for each token that is generated or looked back at {told}"]

    def _ranks(self) -> list[int]:
        return [ranks for ranks in RANKS if self._divides(ranks)]

    def _divides(self, ranks: int) -> bool:
        try:
            check_ranks(self.found.config, ranks)
        except DeviceError:
            return False
        return True

    def _footprint(self, ranks: int = 1, dtype: str = "float32") -> Footprint:
        found = self.found
        return Footprint(config=found.config, architecture=found.architecture, num_ranks=ranks, dtype=dtype)
