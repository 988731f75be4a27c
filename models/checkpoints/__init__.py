"""Checkpoints: resolve a URI to files, read their tensors, load them into a model."""
