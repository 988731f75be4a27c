"""The command line."""

from batchloom.jobs.cli.entry import app, main

__all__ = ["app", "main"]
