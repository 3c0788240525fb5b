"""The images that a winner is confirmed on: those of the study, or a part of search-validation that no trial sees."""

import math
from dataclasses import replace

import torch

from kdsearch.core.maths import generator
from kdsearch.core.terminal import number_of
from kdsearch.data.batches import take_items
from kdsearch.data.items import length
from kdsearch.study.study import Study

KEPT = 3  # one in so many of search-validation


def keep_confirm(study: Study) -> tuple[Study, str]:
    """A study with images to confirm on, a third of search-validation where it has none; and what that costs, in words.

    Which they are is fixed by the study's seed.

    Raises:
        KdsearchError: search-validation is no data set.
    """
    if study.confirm is not None:
        return study, ""
    whole = length(study.search_validation)
    kept = whole // KEPT
    if not kept:
        return study, ""
    order = torch.randperm(whole, generator=generator(study.seed, "confirm"))
    confirm, rest = (take_items(study.search_validation, part.sort().values) for part in (order[:kept], order[kept:]))
    said = (
        f"confirm: {number_of(kept, 'image')} of search-validation, random ones, are kept for the confirmation; trials "
        f"are compared on the {whole - kept} others, with errors {math.sqrt(whole / (whole - kept)):.2f} times as "
        "large. Study(confirm=...) gives it images of its own"
    )
    return replace(study, search_validation=rest, confirm=confirm), said
