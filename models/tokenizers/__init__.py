"""Tokenizers: text to token ids and back. They know no tensors, no rows and no model."""

from batchloom.models.tokenizers.loading import load_tokenizer
from batchloom.models.tokenizers.tokenizer import Encoded, Tokenizer

__all__ = ["Encoded", "Tokenizer", "load_tokenizer"]
