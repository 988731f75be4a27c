"""Tensor-parallel ranks: how a model is divided, the processes that hold it, and how they communicate."""
