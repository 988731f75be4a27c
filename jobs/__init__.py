"""A person's wish becomes a pipeline: the command line, job files, reports. Nothing heavy is imported at the door."""
