"""The front door: `search`, `rank` and the command line, each a thin call of the rooms below."""
