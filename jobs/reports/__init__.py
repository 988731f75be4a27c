"""What is reported of a job, before, during and after it: dry run, status, rows, figures, the HTML page."""
