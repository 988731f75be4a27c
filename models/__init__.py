"""The public door of models: checkpoints in, tensors and tokens out. Nothing heavy is imported until asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.checkpoint_info import CheckpointInfo, describe
    from models.division import check_ranks
    from models.footprint import Footprint, Machine
    from models.generation.engine import Engine, EngineStats, RequestOutput, SequenceOutput
    from models.generation.params import GenerationParams
    from models.loading import load_model
    from models.single_pass import SinglePass
    from models.streamed import stream_model
    from models.tokenizers import Encoded, Tokenizer, load_tokenizer

_HOME = {
    "CheckpointInfo": "models.checkpoint_info",
    "Encoded": "models.tokenizers",
    "Engine": "models.generation.engine",
    "EngineStats": "models.generation.engine",
    "Footprint": "models.footprint",
    "GenerationParams": "models.generation.params",
    "Machine": "models.footprint",
    "RequestOutput": "models.generation.engine",
    "SequenceOutput": "models.generation.engine",
    "SinglePass": "models.single_pass",
    "Tokenizer": "models.tokenizers",
    "check_ranks": "models.division",
    "describe": "models.checkpoint_info",
    "load_model": "models.loading",
    "load_tokenizer": "models.tokenizers",
    "stream_model": "models.streamed",
}

__all__ = [
    "CheckpointInfo",
    "Encoded",
    "Engine",
    "EngineStats",
    "Footprint",
    "GenerationParams",
    "Machine",
    "RequestOutput",
    "SequenceOutput",
    "SinglePass",
    "Tokenizer",
    "check_ranks",
    "describe",
    "load_model",
    "load_tokenizer",
    "stream_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
