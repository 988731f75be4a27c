"""Stores: files by name on any fsspec filesystem, whose calls are tried again with patience. They know no Parquet."""
