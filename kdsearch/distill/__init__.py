"""One student and its policy, trained: phases, steps, estimators, checkpoints."""
