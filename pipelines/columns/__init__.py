"""Columns: which of an input a job reads and keeps, as which types, and those that the place of a file tells."""
