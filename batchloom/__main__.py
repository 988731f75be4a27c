"""`python -m batchloom` is the `batchloom` command, for machines where only the packages are there."""

from batchloom.jobs.cli import main

main()
