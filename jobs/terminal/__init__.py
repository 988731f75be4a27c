"""What a terminal or a notebook shows: results, tables, progress. Everything that Batchloom prints is printed here."""
