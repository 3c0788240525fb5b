"""One question and its trials: the study, its space, the preflight, runs, references, confirmation."""
