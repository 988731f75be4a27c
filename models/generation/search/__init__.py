"""Searches: how the next token is chosen from logits. They know no model and no KV cache."""
