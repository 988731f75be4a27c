"""One file a family. The registry finds classes here by architecture name."""
