"""What answers add up to, a file for each kind. They read no output: rows are handed to them."""
