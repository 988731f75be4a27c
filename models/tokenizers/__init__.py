"""Tokenizers: text to token ids and back. They know no tensors, rows or model. The library is imported lazily."""

from typing import TYPE_CHECKING, Any

from batchloom.models.tokenizers.tokenizer import Encoded, Tokenizer

if TYPE_CHECKING:
    from batchloom.models.tokenizers.loading import load_tokenizer

__all__ = ["Encoded", "Tokenizer", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name != "load_tokenizer":
        raise AttributeError(f"module 'batchloom.models.tokenizers' has no attribute {name!r}")
    from batchloom.models.tokenizers.loading import load_tokenizer

    return load_tokenizer
