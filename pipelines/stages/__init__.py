"""The stages that a unit passes through: read, tokenize, infer, write."""
