"""A model's files as they were when a job was planned: others in their places are refused. It imports no torch.

    plan     describe() hashes every file that decides an answer        PinnedModel: names, hashes, versions
    replica  small files are hashed again, weights compared by version  CheckpointError where one is another

Weights are read once: equal versions mean equal bytes, since no write leaves the version as it is. A node with a copy
of its own, whose versions are others, hashes the copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchloom.models.errors import CheckpointError

Version = tuple[str, ...]
"""What changes whenever a file is written or replaced: size, inode and times of a local one; size, ETag and dates of a
store's."""

# Small files that decide answers, whichever of them a model has; weights are pinned beside them.
DECIDING = (
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True)
class PinnedFile:
    """One file as it was when it was hashed."""

    name: str
    sha256: str
    version: Version | None = None
    """None: not known, or written so shortly before that a second write could have left the same."""


@dataclass(frozen=True)
class PinnedModel:
    """A model's URI and its files. It stands for the URI wherever a model or a tokenizer is loaded."""

    uri: str
    files: tuple[PinnedFile, ...]
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Values that stand over those of config.json."""
    is_strict: bool = False
    """Whether tensors that no class of the family reads are refused."""

    def __str__(self) -> str:
        return self.uri

    def file(self, name: str) -> PinnedFile | None:
        """Return a file of the plan, None where the model had none of this name."""
        return next((file for file in self.files if file.name == name), None)

    def check(self, name: str, sha256: str | None) -> None:
        """Compare what a file is now with the plan; None: it is not there. Raises: CheckpointError where it differs."""
        planned = self.file(name)
        before = None if planned is None else planned.sha256
        if before != sha256:
            raise CheckpointError(self.changed(name, f"its sha256 was {_short(before)}, is {_short(sha256)}"))

    def changed(self, name: str, how: str) -> str:
        """Return the words for a file that is not the planned one."""
        return (
            f"Model {self.uri!r}: {name} is not the file that this job was planned with: {how}. Nothing was computed "
            "from it. Put the planned file back, or run the job again: other weights, tokenizers and configurations "
            "are another job, which needs another output.path."
        )


def _short(sha256: str | None) -> str:
    return "none, as there was no such file" if sha256 is None else f"{sha256[:16]}..."
