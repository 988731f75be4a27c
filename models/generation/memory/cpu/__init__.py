"""The KV cache of CPUs: exact shapes, a tensor for each prompt."""
