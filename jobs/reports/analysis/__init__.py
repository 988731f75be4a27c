"""What an analyst asks of an output: its answers, samples, errors, lengths and speed. It draws nothing."""
