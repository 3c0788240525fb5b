"""Looks at networks and changes nothing: how well, where two differ, what a policy does to one, why one is wrong."""
