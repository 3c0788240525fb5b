"""The front door: search, rank, the command line and what it shows."""
