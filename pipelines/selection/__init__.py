"""Which rows of the input are answered: an expression over their columns, a sample. It reads no file."""
