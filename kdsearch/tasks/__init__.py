"""What a target is, how it follows a draw, and what is measured."""

from kdsearch.tasks.classification import Classification
from kdsearch.tasks.task import Task

__all__ = ["Classification", "Task"]
