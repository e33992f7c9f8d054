"""Every claim on speed and memory is one command here; README.md holds the results."""
