"""The table of distillation losses: each family's own rows."""

from collections.abc import Mapping

from kdsearch.losses import features, logits, relational
from kdsearch.losses.loss import Kind

TABLE: Mapping[str, Kind] = {kind.name: kind for kind in (*logits.KINDS, *features.KINDS, *relational.KINDS)}
"""The distillation losses by name, each with its formula, its source and whether it compares images with each other."""
