"""Kernels of Triton for what a search does in many small operations of torch. They are imported where a GPU is."""
