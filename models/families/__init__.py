"""Model families: one record each in table.py and one file with the classes, imported when one is wanted."""
