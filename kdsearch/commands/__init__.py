"""The front door: `search`, `train`, `rank` and the command line, each a thin call of the rooms below."""
