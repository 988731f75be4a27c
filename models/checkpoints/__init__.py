"""Checkpoints: from a URI to files, from files to tensors, from tensors to a loaded model."""
