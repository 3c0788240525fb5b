"""What `apply` takes and gives: shapes, types, memory formats, fills, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import functional as tv

from kdsearch.augment.operations import FILLS, LINEAR, apply
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations.colour import luma
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Draw

NAMES = list(OPERATIONS)
CONTINUOUS = [name for name in NAMES if name not in ("equalize", "solarize", "posterize", "erase")]


def everything(size: int, force, *, share: float = 0.5) -> Draw:
    """Every operation in every draw, a share of the gates open."""
    magnitudes = {name: 0.4 * (op.limit or 0.0) for name, op in OPERATIONS.items()}
    draw = force(magnitudes, size)
    draw.gates.copy_(torch.rand(draw.gates.shape, generator=generator("everything")) < share)
    return draw


# Types and formats


def test_bytes_are_their_floats(photos: Tensor, force) -> None:
    levels = (photos[:48] * 255).round().to(torch.uint8)
    draw = everything(48, force)
    out = apply(draw, levels).images
    assert out.dtype == torch.float32
    assert torch.equal(out, apply(draw, levels / 255).images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_but_is_computed_in_single(dtype: torch.dtype, photos: Tensor, force) -> None:
    draw, x = everything(48, force), photos[:48].to(dtype)
    out = apply(draw, x).images
    assert out.dtype == dtype
    assert torch.equal(out, apply(draw, x.float()).images.to(dtype))


def test_autocast_changes_nothing(photos: Tensor, force) -> None:
    draw = everything(48, force)
    with torch.autocast("cpu", torch.bfloat16):
        out = apply(draw, photos[:48]).images
    assert torch.equal(out, apply(draw, photos[:48]).images)


def test_channels_last_is_kept_and_means_the_same(photos: Tensor, force) -> None:
    draw = everything(48, force)
    x = photos[:48].contiguous(memory_format=torch.channels_last)
    out = apply(draw, x).images
    assert out.is_contiguous(memory_format=torch.channels_last)
    continuous = everything(48, force)
    for i, name in enumerate(continuous.operations):
        continuous.gates[:, i] &= name in CONTINUOUS
    close = apply(continuous, photos[:48]).images
    torch.testing.assert_close(apply(continuous, x).images, close, atol=1e-5, rtol=0)


def test_a_view_of_other_memory_is_treated_as_its_values(photos: Tensor, force) -> None:
    draw = everything(24, force)
    for x in (photos[:48:2], photos[:24].transpose(2, 3), photos[:24].flip(3), photos[:1].expand(24, -1, -1, -1)):
        assert torch.equal(apply(draw, x).images, apply(draw, x.clone(memory_format=torch.contiguous_format)).images)


def test_sixteen_bytes_at_a_time_is_the_same(force) -> None:
    """Images of 7 x 9 cannot be put back 16 bytes at a time; the same pixels within 8 x 12 can."""
    x = torch.rand(20, 3, 8, 12, generator=generator("odd"))
    draw = force({"solarize": 0.5, "invert": 0.0}, 20)
    draw.gates.copy_(torch.rand(20, 2, generator=generator("odd gates")) < 0.5)
    assert torch.equal(apply(draw, x[..., :7, :9]).images, apply(draw, x).images[..., :7, :9])


def test_the_gradient_path_gives_the_pixels_of_the_fast_path(images: Tensor, force) -> None:
    draw = everything(48, force)
    fast = apply(draw, images[:48])
    slow = apply(draw, images[:48], draw.magnitudes.clone().requires_grad_())
    assert slow.images.requires_grad and not fast.images.requires_grad
    off = (slow.images - fast.images).abs()
    assert (off > 1e-5).double().mean() <= 1e-3
    torch.testing.assert_close(slow.matrix, fast.matrix)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_gpu(photos: Tensor, force) -> None:
    draw, x = everything(48, force), photos[:48].cuda()
    m = draw.magnitudes.clone().requires_grad_()
    for fill in FILLS:
        filled = replace(draw, fill=fill)
        apply(filled, x, m)  # the first call loads kernels
        torch.cuda.set_sync_debug_mode("error")
        try:
            outs = [apply(filled, x).images, apply(filled, x, m).images]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        host = apply(filled, photos[:48]).images
        for out in outs:
            assert ((out.detach().cpu() - host).abs() > 1e-4).double().mean() <= 1e-3


# Channels


def test_operations_on_colours_leave_images_that_are_not_rgb(force) -> None:
    for channels in (1, 2, 5):
        x = torch.rand(4, channels, 8, 8, generator=generator("channels", channels))
        for name, op in OPERATIONS.items():
            out = apply(force({name: op.limit or 0.0}, 4), x).images
            assert out.shape == x.shape and torch.isfinite(out).all(), name
            if op.channels == 3:
                assert torch.equal(out, x), name


def test_contrast_of_other_images_is_about_the_mean_of_their_channels(force) -> None:
    x = 0.3 + 0.4 * torch.rand(3, 5, 8, 8, generator=generator("five"))
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(apply(force({"contrast": 0.4}, 3), x).images, mean + 1.4 * (x - mean))


def test_channel_shift_adds_to_one_channel_each_as_likely(photos: Tensor, force) -> None:
    x = photos[:120].clamp(0.25, 0.75)
    draw = force({"channel_shift": 0.2}, 120)
    added = apply(draw, x).images - x
    which = (draw.uniforms[:, 0, 1] * 3).long()
    for i in range(120):
        expected = torch.zeros(3)
        expected[which[i]] = 0.2
        torch.testing.assert_close(added[i], expected[:, None, None].expand(3, 32, 32), atol=1e-6, rtol=0)
    assert which.unique().tolist() == [0, 1, 2]


def test_a_uniform_that_rounds_to_one_means_the_last_channel(photos: Tensor, force) -> None:
    draw, x = force({"channel_shift": 0.2}, 3), photos[:3]
    draw.uniforms[..., 1] = 1 - 1e-12
    changed = (apply(draw, x).images != x).any(3).any(2)
    assert changed.tolist() == [[False, False, True]] * 3


def test_the_linear_group_is_its_operations_one_after_another(photos: Tensor, force) -> None:
    """Every subset of the five, against the five formulas in order with one clamp."""
    x, m = photos[:32].double(), {"brightness": 0.3, "contrast": -0.4, "saturation": 0.6, "channel_shift": 0.1}
    draw = force({name: m.get(name, 0.0) for name in LINEAR}, 32)
    draw.gates.copy_((torch.arange(32)[:, None] >> torch.arange(5)) % 2 == 1)
    out = apply(draw, x).images
    shifted = (draw.uniforms[:, LINEAR.index("channel_shift"), 1] * 3).long()
    for i in range(32):
        y = x[i : i + 1]
        for name, gate in zip(draw.operations, draw.gates[i].tolist(), strict=True):
            if not gate:
                continue
            if name == "brightness":
                y = y * 1.3
            elif name == "contrast":
                mean = luma(y).mean((1, 2, 3), keepdim=True)
                y = mean + 0.6 * (y - mean)
            elif name in ("saturation", "gray"):
                y = luma(y) + (1.6 if name == "saturation" else 0.0) * (y - luma(y))
            else:
                y = y.clone()
                y[:, shifted[i]] += 0.1
        # Gray after saturation is gray alone: not to the last digit, because torchvision's weights sum to .9999.
        tolerance = (
            1e-4 if {"saturation", "gray"} <= {n for n, g in zip(LINEAR, draw.gates[i], strict=True) if g} else 1e-9
        )
        torch.testing.assert_close(out[i : i + 1], y.clamp(0, 1), atol=tolerance, rtol=0)


def test_gray_after_saturation_leaves_no_gradient_to_it(photos: Tensor, force) -> None:
    draw = force({"saturation": 0.4, "gray": 0.0, "brightness": 0.1}, 4)
    m = draw.magnitudes.clone().requires_grad_()
    (apply(draw, photos[:4], m).images * torch.rand(3, 32, 32, generator=generator("after"))).sum().backward()
    names = list(draw.operations)
    assert (m.grad[:, names.index("saturation")].abs() < 1e-2).all()  # torchvision's weights sum to .9999
    assert (m.grad[:, names.index("brightness")].abs() > 1).all()


@pytest.mark.parametrize("magnitudes", [{"contrast": 0.4}, {"rotate": 10.0}, {"equalize": 0.0, "gaussian_blur": 1.0}])
@pytest.mark.parametrize(("channels", "side"), [(1, 200), (1, 224), (3, 256), (3, 300)])
def test_large_images_have_the_same_bits_in_any_batch_on_any_threads(
    magnitudes: dict[str, float], channels: int, side: int, force
) -> None:
    """A sum over one large image is split over threads, a sum over many is not."""
    draw, before = force(magnitudes, 2, fill="mean"), torch.get_num_threads()
    for i in range(2):
        x, views = torch.rand(2, channels, side, side, generator=generator("large", i)), []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                views += [apply(draw, x).images[:1], apply(draw.rows(torch.tensor([0])), x[:1]).images]
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(view, views[0]) for view in views)


def test_values_a_rounding_beyond_the_range_count_as_its_ends(photos: Tensor, force) -> None:
    x = photos[:8].clone()
    x[:, :, 0, 0], x[:, :, 0, 1] = 1 + 9e-4, -9e-4
    for name, op in OPERATIONS.items():
        out = apply(force({name: op.limit or 0.0}, 8), x).images
        assert torch.equal(out, apply(force({name: op.limit or 0.0}, 8), x.clamp(0, 1)).images), name


# Fills


@pytest.mark.parametrize("fill", FILLS)
def test_the_fill_stands_where_no_pixel_comes_from(fill: str, images: Tensor, force) -> None:
    x = images[:16]
    side = x.shape[-1]
    out = apply(force({"translate_x": 0.25}, 16, fill=fill), x).images
    moved = side // 4
    torch.testing.assert_close(out[..., moved:], x[..., : side - moved], atol=1e-5, rtol=0)
    expected = {
        "zero": torch.zeros_like(x[..., :moved]),
        "mean": x.mean((2, 3), keepdim=True).expand(-1, -1, side, moved),
        "reflect": x[..., :moved].flip(3),
    }[fill]
    torch.testing.assert_close(out[..., :moved], expected, atol=1e-5, rtol=0)


def test_reflection_is_torchvisions_symmetric_padding_before_the_warp(photos: Tensor, force) -> None:
    x = photos[:8]
    padded = torch.stack([tv.pad(image, [32] * 4, padding_mode="symmetric") for image in x])
    turned = apply(force({"rotate": 30.0, "shear_x": 0.2}, 8), padded).images[..., 32:-32, 32:-32]
    ours = apply(force({"rotate": 30.0, "shear_x": 0.2}, 8, fill="reflect"), x).images
    torch.testing.assert_close(ours, turned, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_changes_nothing_where_nothing_is_empty(fill: str, photos: Tensor, force) -> None:
    zoom = {"scale": 0.5, "rotate": 10.0}
    inside = apply(force(zoom, 8, fill=fill), photos[:8]).images
    torch.testing.assert_close(inside, apply(force(zoom, 8), photos[:8]).images, atol=1e-5, rtol=0)


def test_black_stays_no_less_than_black_beside_the_mean(digits_images: Tensor, force) -> None:
    """Minus 1e-8, which the mean leaves behind, has no gamma and no level."""
    draw = force({"rotate": 20.0, "gamma": -0.3, "equalize": 0.0}, 200, fill="mean")
    assert torch.isfinite(apply(draw, digits_images[:200]).images).all()


@pytest.mark.parametrize("fill", FILLS)
def test_white_stays_no_more_than_white(fill: str, force) -> None:
    white = torch.ones(200, 1, 15, 17)
    magnitudes = {"rotate": torch.linspace(-180, 180, 200), "scale": -0.5, "perspective": 0.2}
    out = apply(force(magnitudes, 200, fill=fill), white).images
    assert 0.999 < out.max() <= 1


# Perspective


def corners(side_x: int, side_y: int) -> Tensor:
    half = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / 2
    return half * torch.tensor([side_x, side_y])


def test_perspective_moves_each_corner_inwards_by_its_uniforms(force) -> None:
    x = torch.rand(20, 1, 12, 18, generator=generator("corners"))
    draw = force({"perspective": 0.2}, 20)
    matrix = apply(draw, x).matrix
    points = torch.cat([corners(18, 12), torch.ones(4, 1)], 1)
    went = (matrix[:, None] @ points[..., None]).squeeze(-1)
    went = went[..., :2] / went[..., 2:]
    signs = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    inwards = 0.2 * draw.uniforms[:, 0, 1:].view(-1, 4, 2) * torch.tensor([18, 12]) * signs
    torch.testing.assert_close(went, corners(18, 12) + inwards)


def test_perspective_is_torchvisions(images: Tensor, force) -> None:
    x = images[:16]
    height, width = x.shape[-2:]
    draw = force({"perspective": 0.22, "rotate": 20.0}, 16)
    view = apply(draw, x)
    start = corners(width, height)
    centre = torch.tensor([width / 2, height / 2])
    for i in range(16):
        went = torch.cat([start, torch.ones(4, 1)], 1) @ view.matrix[i].T
        end = went[:, :2] / went[:, 2:]
        theirs = tv.perspective(x[i], (start + centre).tolist(), (end + centre).tolist())
        torch.testing.assert_close(view.images[i], theirs, atol=2e-4, rtol=0)


def test_no_point_of_an_image_lies_behind_the_perspective_at_its_hard_range(force) -> None:
    draw = force({"perspective": OPERATIONS["perspective"].hard}, 256)
    draw.uniforms[..., 1:].copy_(((torch.arange(256)[:, None] >> torch.arange(8)) % 2 == 1)[:, None])
    matrix = apply(draw, torch.rand(256, 1, 8, 8)).matrix.inverse()
    depth = matrix[:, 2:] @ torch.cat([corners(8, 8), torch.ones(4, 1)], 1).T
    assert (depth > 0.05).all()


# What is refused, and what works although it is small


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.rand(3, 8, 8), r"need \(B, C, H, W\).*torch.float32 \(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), r"float in \[0, 1\] or uint8; got torch.int64"),
        (torch.rand(2, 3, 8, 8) * 255, r"values from .* to 25.*divide uint8 values"),
        (torch.rand(2, 3, 8, 8) - 0.5, r"values from -0.* before the normalisation"),
        (torch.full((2, 3, 8, 8), math.nan), "some values are not a number"),
        (torch.rand(2, 3, 0, 8), r"need \(B, C, H, W\).*\(2, 3, 0, 8\)"),
        (torch.rand(2, 0, 8, 8), r"need \(B, C, H, W\).*\(2, 0, 8, 8\)"),
        (torch.full((2, 3, 8, 8), math.inf), "values from inf to inf"),
        (torch.rand(3, 3, 8, 8), "a draw of 2 images, applied to 3"),
    ],
    ids=[
        "one image",
        "integers",
        "0 to 255",
        "normalised",
        "NaN",
        "no rows",
        "no channels",
        "infinite",
        "another size",
    ],
)
def test_wrong_images_are_refused_with_one_message(wrong: Tensor, message: str, force) -> None:
    with pytest.raises(KdsearchError, match=message):
        apply(force({"rotate": 10.0}, 2), wrong)


def test_magnitudes_of_another_shape_are_refused(photos: Tensor, force) -> None:
    draw = force({"rotate": 10.0, "contrast": 0.1}, 2)
    for wrong in (draw.magnitudes.T[:1], draw.magnitudes[:, 0]):
        with pytest.raises(KdsearchError, match=r"need one for each operation drawn, \(2, 2\)"):
            apply(draw, photos[:2], wrong)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("fill", FILLS)
def test_tiny_images_work(shape: tuple[int, int], channels: int, fill: str, force) -> None:
    x = torch.rand(6, channels, *shape, generator=generator("tiny"))
    for name, op in OPERATIONS.items():
        for m in {op.limit or 0.0, op.hard or 0.0}:
            out = apply(force({name: m}, 6, fill=fill), x).images
            assert out.shape == x.shape and torch.isfinite(out).all(), name
            assert out.min() >= 0 and out.max() <= 1, name


def test_no_images_give_no_images(force) -> None:
    view = apply(everything(0, force), torch.rand(0, 3, 8, 8))
    assert view.images.shape == (0, 3, 8, 8) and view.matrix.shape == (0, 3, 3)


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True),
    size=st.integers(1, 5),
    channels=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]),
    fill=st.sampled_from(FILLS),
    extent=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
    hard=st.booleans(),
)
def test_any_policy_gives_images_of_the_same_kind(
    names, size, channels, height, width, dtype, fill, extent, seed, hard
) -> None:
    limits = {name: OPERATIONS[name].hard if hard else None for name in names}
    policy = Policy(limits, min(3, len(names)), probability=0.9, extent=extent, fill=fill)
    x = torch.rand(size, channels, height, width, generator=generator("any", seed))
    x = (x * 255).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)
    before, draw = x.clone(), policy.draw(size, generator("any draw", seed))
    view = apply(draw, x, policy.magnitudes(draw))
    assert view.images.shape == x.shape
    assert view.images.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert torch.isfinite(view.images).all() and view.images.min() >= 0 and view.images.max() <= 1
    assert torch.equal(x, before)
    assert torch.equal(view.images.detach(), apply(draw, x, policy.magnitudes(draw)).images.detach())
    last = draw.rows(torch.tensor([size - 1]))
    alone = apply(last, x[-1:], policy.magnitudes(draw)[-1:]).images
    torch.testing.assert_close(alone, view.images[-1:], atol=0, rtol=0)


# Magnitudes are found by gradient alone


def recovered(name: str, goal: float, start: float, images: Tensor) -> float:
    """The magnitude that gradient descent finds for images changed by `goal` with the signs of the draw."""
    limit = 2 * goal
    policy = Policy({name: limit}, 1, probability=0.5, extent=start / limit)
    with torch.no_grad():
        policy.b.fill_(20.0)  # low and high are one
    optimizer = torch.optim.Adam([policy.a], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    for step in range(60):
        draw = policy.draw(32, generator("recovered", step))
        draw.gates.fill_(True)
        rows = torch.randint(len(images), (32,), generator=generator("rows", step))
        target = apply(draw, images[rows], goal * draw.signs).images
        loss = (apply(draw, images[rows], policy.magnitudes(draw)).images - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return policy.ranges()[1].item()


def test_a_rotation_of_20_degrees_is_recovered_within_one(images: Tensor) -> None:
    for start in (8.0, 32.0):
        assert recovered("rotate", 20.0, start, images) == pytest.approx(20.0, abs=1.0)


@pytest.mark.parametrize("name", ["translate_x", "translate_y"])
def test_a_translation_of_a_fifth_is_recovered_within_a_hundredth(name: str, images: Tensor) -> None:
    padded = pad(images, [images.shape[-1] // 4] * 4)  # so that nothing leaves the image
    for start in (0.12, 0.3):
        assert recovered(name, 0.2, start, padded) == pytest.approx(0.2, abs=0.01)
