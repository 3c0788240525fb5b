"""The base view: drawn afresh under the policy's, in one warp with it, carried by every counterfactual."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdsearch.augment.bases import NAMED, as_base, base_of_parts
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import apply, move_boxes, move_labels, shares_warp
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Batch, Draw
from kdsearch.data.batches import ArrayData
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.estimators import flipped, policy_gradient
from kdsearch.distill.phase import Phase
from kdsearch.distill.steps import BaseDraw, make_views
from kdsearch.distill.views import Views
from kdsearch.losses.logits import kd
from kdsearch.networks.convnets import small_convnet
from kdsearch.networks.teachers import Teacher
from kdsearch.tasks import Classification

TASK = Classification.of(10)


def smooth(size: int = 8, channels: int = 1, side: int = 24) -> Tensor:
    """Images without edges, on which bilinear interpolation errs little."""
    place = torch.linspace(-1, 1, side)
    waves = torch.rand(size, channels, 4, 1, 1, generator=generator("smooth")) * 3
    x, y = place[None, :], place[:, None]
    return 0.5 + 0.45 * torch.sin(waves[:, :, 0] * x + waves[:, :, 1] * y + waves[:, :, 2])


def drawn(policy: Policy, size: int = 8, name: str = "draw") -> Draw:
    return policy.draw(size, generator(name))


def learner(fill: str = "reflect") -> Policy:
    return Policy({"rotate": 15.0, "translate_x": 0.1, "scale": 0.1, "brightness": 0.3}, 3, fill=fill)


def over(draw: Draw, base: Draw) -> Draw:
    return replace(draw, base=base)


def test_one_warp_equals_two_on_a_smooth_image_where_all_points_stay_inside() -> None:
    images, base = smooth(), drawn(base_of_parts(["turn", "shift"]), name="base")
    second = drawn(Policy({"rotate": 10.0, "scale": 0.1}, 2, fill="reflect"))
    assert shares_warp(second, base)
    one, first = apply(over(second, base), images), apply(base, images)
    two = apply(second, first.images)
    torch.testing.assert_close(one.matrix, two.matrix @ first.matrix)
    middle = (..., slice(8, 16), slice(8, 16))
    assert (one.images - two.images)[middle].abs().max() < 5e-3 < (first.images - images)[middle].abs().max()


def test_masks_and_boxes_follow_both_views_by_the_product_of_their_matrices() -> None:
    """A bright blob: the moved mask is that of the moved image, and its box that of the moved pixels."""
    side, place = 256, torch.linspace(-1, 1, 256)
    blob = torch.exp(-12 * ((place[None, :] - 0.1) ** 2 + 1.5 * (place[:, None] + 0.15) ** 2))
    images = blob.expand(16, 1, side, side)
    masks = (images[:, 0] > 0.5).long()
    view = apply(over(drawn(learner_of_moves(), 16), drawn(base_of_parts(["flip", "turn", "shift"]), 16, "b")), images)
    moved = move_labels(masks, view.matrix, outside=0)
    assert (moved == (view.images[:, 0] > 0.5)).float().mean() > 0.999 > (moved == masks).float().mean()
    upright = Policy({"translate_x": 0.1, "scale": 0.1}, 2, fill="reflect")  # a turned box has a larger box around it
    view = apply(over(drawn(upright, 16), drawn(base_of_parts(["flip", "shift"]), 16, "b")), images)
    boxes, seen = move_boxes(around(masks), view.matrix, side, side)
    off = (boxes - around((view.images[:, 0] > 0.5).long())).abs()
    assert seen.min() == 1 and off.mean() < 0.5 and off.max() <= 1.5  # both are whole pixels: half a one on average


def learner_of_moves() -> Policy:
    return Policy({"rotate": 15.0, "translate_x": 0.1, "scale": 0.1}, 3, fill="reflect")


def around(masks: Tensor) -> Tensor:
    """The upright box of each mask, (B, 1, 4) in pixels."""
    found = []
    for mask in masks:
        y, x = mask.nonzero().unbind(1)
        found.append([int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1])
    return torch.tensor(found).float()[:, None]


@pytest.mark.parametrize("base", [base_of_parts(["shift"], fill="zero"), Policy(["brightness", "rotate"], 2)])
def test_a_base_view_that_fills_otherwise_or_changes_colours_comes_first_as_pixels(base: Policy) -> None:
    images, first, second = smooth(), drawn(base, name="base"), drawn(learner())
    assert not shares_warp(second, first)
    view, seen = apply(over(second, first), images), apply(first, images)
    again = apply(second, seen.images)
    assert torch.equal(view.images, again.images)
    torch.testing.assert_close(view.matrix, again.matrix @ seen.matrix)


def test_a_base_of_closed_gates_is_the_bare_base_to_the_bit() -> None:
    images, second = smooth(), drawn(learner())
    closed = drawn(base_of_parts(["turn", "shift", "scale"], probability=0.0), name="base")
    bare, over_it = apply(second, images), apply(over(second, closed), images)
    assert torch.equal(bare.images, over_it.images) and torch.equal(bare.matrix, over_it.matrix)


def test_a_second_view_of_closed_gates_is_the_base_view_to_the_bit() -> None:
    images, base, second = smooth(), drawn(base_of_parts(["turn", "shift"]), name="base"), drawn(learner())
    still = replace(second, gates=torch.zeros_like(second.gates))
    assert torch.equal(apply(over(still, base), images).images, apply(base, images).images)


def test_a_draw_over_a_base_view_replays_and_travels_whole() -> None:
    images, draw = smooth(), over(drawn(learner()), drawn(base_of_parts(["flip", "shift"]), name="base"))
    view = apply(draw, images)
    assert torch.equal(apply(pickle.loads(pickle.dumps(draw)), images).images, view.images)
    index = torch.tensor([5, 2, 2])
    assert torch.equal(apply(draw.rows(index), images[index]).images, view.images[index])


def test_counterfactual_flips_leave_the_base_alone() -> None:
    """By enumeration: every row and slot has one gate the other way, and the base view that it had."""
    draw = over(drawn(learner()), drawn(base_of_parts(["flip", "shift", "turn"]), name="base"))
    rows, slots = torch.arange(8).repeat_interleave(3), torch.arange(3).repeat(8)
    other = flipped(draw, rows, slots)
    assert other.base is not None and draw.base is not None
    for name in ("chosen", "gates", "signs", "uniforms", "magnitudes", "seeds"):
        assert torch.equal(getattr(other.base, name), getattr(draw.base, name)[rows])
    assert (other.gates != draw.gates[rows]).sum(1).tolist() == [1] * 24


def test_the_gradient_to_ranges_passes_the_composed_warp() -> None:
    """Against central differences of the same draw."""
    images, policy = smooth().double(), Policy({"rotate": 15.0, "translate_x": 0.1, "scale": 0.1}, 3, fill="reflect")
    draw = over(policy.draw(8, generator("g")), drawn(base_of_parts(["turn", "shift"]), name="base"))
    weights = torch.randn(8, 1, 24, 24, generator=generator("w"), dtype=torch.float64)

    def loss(policy: Policy) -> Tensor:
        return (apply(draw, images, policy.magnitudes(draw)).images * weights).sum()

    loss(policy).backward()
    assert policy.a.grad is not None
    for i in range(len(policy.a)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(policy)
            with torch.no_grad():
                moved.a[i] += step
            ends.append(loss(moved).item())
        torch.testing.assert_close(policy.a.grad[i].item(), (ends[0] - ends[1]) / 2e-5, rtol=2e-3, atol=1e-3)


def test_every_counterfactual_of_a_policy_step_is_seen_over_its_base_view() -> None:
    """A loss that tells the base view of an image from its pixels: a corner that only the base moves."""
    images = torch.zeros(8, 1, 16, 16)
    images[..., :, 8:] = 1.0
    policy = Policy({"brightness": 0.5, "posterize": 4.0}, 2)  # neither moves a pixel
    base = drawn(Policy({"horizontal_flip": None}, 1), name="base")
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(view: object, rows: Tensor) -> Tensor:
        seen.append((view.images[:, 0, 0, 15] > view.images[:, 0, 0, 0], rows))  # type: ignore[attr-defined]
        return view.images.mean((1, 2, 3))  # type: ignore[attr-defined]

    draw = over(replace(policy.draw(8, generator("x")), magnitudes=torch.full((8, 2), 0.1).double()), base)
    policy_gradient(policy, draw, images, loss)
    assert len(seen) > 2
    for right, rows in seen:
        assert torch.equal(right, ~base.gates[rows, 0])


def network(channels: int) -> nn.Module:
    torch.manual_seed(channels)
    return small_convnet(channels)


def distiller(policy: Policy | None, **settings: object) -> Distiller:
    return Distiller(Teacher(network(6)), network(4), policy, TASK, **settings)  # type: ignore[arg-type]


def batch(digits_images: Tensor) -> Batch:
    return Batch(digits_images[:12], torch.arange(12) % 10, torch.arange(12))


def test_labels_and_matrices_of_views_are_those_of_base_and_policy(digits_images: Tensor) -> None:
    given, base = batch(digits_images), BaseDraw(policy := base_of_parts(["shift", "turn"]), drawn(policy, 12))
    draw = drawn(learner(), 12)
    first = policy.augment(base.draw, given.images)
    for origin in ("base", "image"):
        views = make_views(given, draw, learner(), TASK, Views(second_from=origin), base)  # type: ignore[arg-type]
        assert torch.equal(views.images[:12], first.images) and torch.equal(views.matrix[:12], first.matrix)
        alone = learner().augment(draw, given.images)
        wanted = alone.matrix @ first.matrix if origin == "base" else alone.matrix
        torch.testing.assert_close(views.matrix[12:], wanted)
        assert views.draw is not None and (views.draw.base is not None) == (origin == "base")
        assert torch.equal(apply(views.draw, given.images).images, views.images[12:])


def test_bare_runs_draw_what_they_drew_whatever_the_base(digits_images: Tensor) -> None:
    """The base has a stream of its own."""
    seen: list[Draw] = []

    class Watched(Policy):
        def augment(self, draw: Draw, images: Tensor):  # type: ignore[no-untyped-def]
            seen.append(draw)
            return super().augment(draw, images)

    for base in (None, "turn_shift"):
        policy = Watched({"rotate": 15.0, "invert": None}, 1, fill="reflect")
        data = ArrayData(digits_images[:24], torch.arange(24) % 10)
        list(distiller(policy).run(Phase((kd(),), epochs=1, steps=3, batch=8, base=base), data, data))
    bare, based = seen[:3], seen[3:]
    for one, other in zip(bare, based, strict=True):
        assert one.base is None and other.base is not None
        assert torch.equal(one.uniforms, other.uniforms) and torch.equal(one.gates, other.gates)


@pytest.mark.parametrize(("given", "message"), [("shfit", "unknown base 'shfit'.*shift"), (3, "base: '3' is none")])
def test_what_is_no_base_is_refused(given: object, message: str) -> None:
    with pytest.raises(KdsearchError, match=message):
        as_base(given)


def test_named_bases_are_there_by_their_names() -> None:
    for name in NAMED:
        base = as_base(name)
        assert isinstance(base, Policy) and base.fill == "reflect" and not base.logit.requires_grad
        assert as_base(base) is base


def test_versions_of_a_bare_base_are_refused() -> None:
    with pytest.raises(KdsearchError, match="base_versions of a bare base"):
        Phase((kd(),), base_versions=4)
    with pytest.raises(KdsearchError, match="base_versions is 0; allowed: whole numbers, 1 or more"):
        Phase((kd(),), base="shift", base_versions=0)


def test_a_fixed_transform_over_a_base_view_replays_from_its_draw(digits_images: Tensor) -> None:
    given, policy = batch(digits_images), base_of_parts(["turn", "shift"])
    half = FixedTransform(lambda image: image // 2)
    views = make_views(given, half.draw(12), half, TASK, Views(), BaseDraw(policy, drawn(policy, 12)))
    assert views.draw is not None and views.draw.base is not None
    assert torch.equal(half.augment(views.draw, given.images).images, views.images[12:])
    assert views.images[12:].max() <= 0.5 < views.images[:12].max()


def test_a_fixed_transform_is_a_base_where_targets_stay(digits_images: Tensor) -> None:
    given, turned = batch(digits_images), FixedTransform(lambda image: image.flip(-1))
    base = BaseDraw(turned, turned.draw(12))
    views = make_views(given, drawn(learner(), 12), learner(), TASK, Views(), base)
    assert torch.allclose(views.images[:12], given.images.flip(-1), atol=1 / 255)
    assert torch.equal(views.images[12:], learner().augment(drawn(learner(), 12), views.images[:12]).images)


class Masks(Classification):
    """Targets that move."""

    def follow(self, target: Tensor, matrix: Tensor) -> Tensor:
        return target + matrix[:, 0, 2].long()


def test_a_base_that_moves_pixels_where_targets_cannot_follow_is_refused(digits_images: Tensor) -> None:
    given, turned, policy = batch(digits_images), FixedTransform(lambda image: image.flip(-1)), learner()
    moving = Masks(TASK.class_names)
    with pytest.raises(KdsearchError, match=r"^base: a FixedTransform does not tell where it moves pixels"):
        make_views(given, drawn(policy, 12), policy, moving, Views(), BaseDraw(turned, turned.draw(12)))
    shift = base_of_parts(["shift"])
    base, apart = BaseDraw(shift, drawn(shift, 12)), Views(teacher="clean", second_from="image")
    with pytest.raises(KdsearchError, match="cannot label a second view of the image"):
        make_views(given, drawn(policy, 12), policy, moving, apart, base)
    make_views(given, drawn(policy, 12), policy, TASK, apart, base)
