"""`python -m jobs` is the `batchloom` command, for machines where only the packages are there."""

from jobs.cli import main

main()
