"""What a step is cut into, and what it measures beside the networks: the same numbers as by the plain formula."""

from dataclasses import replace

import torch
from torch import Tensor

from kdsearch.augment.bases import base_of_parts
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.core.maths import generator, spoiled_shares
from kdsearch.distill.steps import split_rows


def test_parts_of_a_batch_follow_each_other_and_are_of_about_one_size() -> None:
    for images, parts in ((64, 1), (64, 3), (7, 2), (5, 4), (3, 2)):
        found = split_rows(images, parts)
        assert [row for part in found for row in range(images)[part]] == list(range(images))
        sizes = [len(range(images)[part]) for part in found]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2


def test_a_part_of_a_draw_by_a_slice_is_that_by_its_places() -> None:
    images = torch.rand(12, 3, 16, 16, generator=generator("images"))
    draw = Policy(["rotate", "noise", "erase"], 2, fill="reflect").draw(12, generator("draw"))
    draw = replace(draw, base=base_of_parts(["flip", "shift"]).draw(12, generator("base")))
    one, other = draw.rows(slice(3, 9)), draw.rows(torch.arange(3, 9))
    assert torch.equal(apply(one, images[3:9]).images, apply(other, images[3:9]).images)
    assert torch.equal(apply(one, images[3:9]).images, apply(draw, images).images[3:9])


def by_formula(before: Tensor, after: Tensor) -> Tensor:
    """Welford's deviation, and comparisons value by value."""
    deviation, left = (x.flatten(1).std(1) for x in (before, after))
    bound_before, bound = (((x <= 0) | (x >= 1)).flatten(1).float().mean(1) for x in (before, after))
    saturated = (bound > 0.95) & (bound_before <= 0.95) & (left >= 0.1 * deviation)
    return torch.stack([(left < 0.1 * deviation).float().mean(), saturated.float().mean()])


def test_spoiled_shares_are_those_of_the_plain_formula() -> None:
    x = torch.rand(400, 3, 9, 7, generator=generator("images"))
    factor = torch.logspace(-3, 3.1, 400)[:, None, None, None]
    changed = ((x - 0.5) * factor + 0.5).clamp(
        0, 1
    )  # from flat to black and white; no factor is .1, where rounding decides
    expected = by_formula(x, changed)
    assert torch.equal(spoiled_shares(x, changed), expected) and expected.min() > 0.2
    flat = torch.rand(400, 1, 1, 1, generator=generator("flat")).expand(400, 3, 9, 7)
    for before, after in ((flat, x), (x, flat), (flat, 0 * x), (flat, flat.roll(1, 0)), (changed, x), (x, x)):
        assert torch.equal(spoiled_shares(before, after), by_formula(before, after))
