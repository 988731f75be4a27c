"""A running job: the driver, the stream of units through Ray, the assembly of parts, and the account of both."""
