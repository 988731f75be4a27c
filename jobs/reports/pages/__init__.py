"""A report as a file: one HTML page, or Markdown. They know blocks, and no output."""
