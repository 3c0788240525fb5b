"""One question and its trials: wiring, space, preflight, runs, references, confirmation."""
