"""What a target is, how it follows a draw, and what is measured."""

from kdsearch.tasks.classification import Classification

__all__ = ["Classification"]
