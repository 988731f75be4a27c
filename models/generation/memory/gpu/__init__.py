"""The KV cache of GPUs: paged blocks in few shapes, so that a decode step can be a CUDA graph."""
