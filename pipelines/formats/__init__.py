"""Formats: what a kind of input file tells of its rows, and how they are read. They know no job, no task and no Ray."""
