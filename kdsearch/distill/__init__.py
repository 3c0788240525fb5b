"""One student and its policy, trained: the loop, its two kinds of steps, and where it stands."""
