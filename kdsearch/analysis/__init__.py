"""Run folders as pandas frames, comparisons of runs, pictures."""
