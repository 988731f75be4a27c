"""The public API of models: checkpoints in, tensors and tokens out. Names are imported lazily, torch among them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchloom.models.checkpoints.info import CheckpointInfo, describe
    from batchloom.models.checkpoints.loading import load_model
    from batchloom.models.checkpoints.pinned import PinnedModel
    from batchloom.models.checkpoints.streamed import stream_model
    from batchloom.models.families.table import architectures
    from batchloom.models.footprint import Footprint
    from batchloom.models.generation.engine import Engine, EngineStats, RequestOutput, SequenceOutput
    from batchloom.models.generation.params import GenerationParams
    from batchloom.models.machines import MACHINES, Machine
    from batchloom.models.ranks.division import check_ranks
    from batchloom.models.single_pass.single_pass import SinglePass
    from batchloom.models.tokenizers import Encoded, Tokenizer, load_tokenizer

_HOME = {
    "CheckpointInfo": "batchloom.models.checkpoints.info",
    "Encoded": "batchloom.models.tokenizers",
    "Engine": "batchloom.models.generation.engine",
    "EngineStats": "batchloom.models.generation.engine",
    "Footprint": "batchloom.models.footprint",
    "GenerationParams": "batchloom.models.generation.params",
    "MACHINES": "batchloom.models.machines",
    "Machine": "batchloom.models.machines",
    "PinnedModel": "batchloom.models.checkpoints.pinned",
    "RequestOutput": "batchloom.models.generation.engine",
    "SequenceOutput": "batchloom.models.generation.engine",
    "SinglePass": "batchloom.models.single_pass.single_pass",
    "Tokenizer": "batchloom.models.tokenizers",
    "architectures": "batchloom.models.families.table",
    "check_ranks": "batchloom.models.ranks.division",
    "describe": "batchloom.models.checkpoints.info",
    "load_model": "batchloom.models.checkpoints.loading",
    "load_tokenizer": "batchloom.models.tokenizers",
    "stream_model": "batchloom.models.checkpoints.streamed",
}

__all__ = [
    "CheckpointInfo",
    "Encoded",
    "Engine",
    "EngineStats",
    "Footprint",
    "GenerationParams",
    "MACHINES",
    "Machine",
    "PinnedModel",
    "RequestOutput",
    "SequenceOutput",
    "SinglePass",
    "Tokenizer",
    "architectures",
    "check_ranks",
    "describe",
    "load_model",
    "load_tokenizer",
    "stream_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'batchloom.models' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
