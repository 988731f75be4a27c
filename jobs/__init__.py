"""From a user's request to a pipeline: the command line, the Python API, job files, reports. Imports nothing."""
