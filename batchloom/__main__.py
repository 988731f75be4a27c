"""`python -m batchloom` is the `batchloom` command, for machines whose PATH does not have it."""

from batchloom.jobs.cli import main

main()
