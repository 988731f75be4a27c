"""Watching a job: what each replica does, whether it is alive, and what is tried again after one died."""
