"""Looks at networks and changes nothing: accuracy, disagreement, scores, diagnosis."""
