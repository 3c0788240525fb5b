"""Laws over the table of operations, on real images."""

import math
from itertools import combinations

import kornia
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from kdsearch.augment.operations import LINEAR, Operation, apply
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations.warp import warp
from kdsearch.core.maths import generator
from kdsearch.core.values import Draw

NAMES = list(OPERATIONS)
SIGNED = [name for name, op in OPERATIONS.items() if op.signed]
PATHWISE = [name for name, op in OPERATIONS.items() if op.limit and op.gradient == "exact"]


def suits(name: str, images: Tensor) -> bool:
    return OPERATIONS[name].suits(images.shape[1])


def skip_unsuited(name: str, images: Tensor) -> None:
    if not suits(name, images):
        pytest.skip(f"{name} needs {OPERATIONS[name].channels} channels")


def at_limits(name: str) -> list[float]:
    op = OPERATIONS[name]
    if op.limit is None:
        return [0.0]
    return [op.limit, -op.limit] if op.signed else [op.limit]


def spread(name: str, size: int, *, seed: int = 0) -> Tensor:
    """Magnitudes between a tenth and all of the limit, of both signs where signed: (size,)."""
    op = OPERATIONS[name]
    u = torch.rand(size, 2, generator=generator("spread", name, seed), dtype=torch.float64)
    sign = torch.where(u[:, 1] < 0.5, -1.0, 1.0) if op.signed else 1.0
    return (op.limit or 0.0) * (0.1 + 0.9 * u[:, 0]) * sign


# The table


def test_the_table_is_complete() -> None:
    assert len(OPERATIONS) >= 24
    for name, op in OPERATIONS.items():
        assert name == op.name
        assert [op.matrix, op.coefficient, op.pixels].count(None) == 2, name
        assert op.reference, name
        assert op.gradient in ("exact", "straight-through", "none"), name
        assert op.channels in (1, 3), name
    assert len({op.matrix or op.coefficient or op.pixels for op in OPERATIONS.values()}) == len(OPERATIONS)


def test_limits_lie_within_the_hard_range_and_units_go_with_magnitudes() -> None:
    for name, op in OPERATIONS.items():
        assert (op.unit != "") == (op.limit is not None) == (op.hard is not None), name
        assert op.limit is None or 0 < op.limit <= op.hard, name
        assert not (op.signed and op.limit is None), name
        assert op.range in ("pathwise", "endpoint", "none"), name


def test_geometry_comes_before_pixels_and_the_linear_group_is_adjacent() -> None:
    assert [op.matrix is None for op in OPERATIONS.values()] == sorted(op.matrix is None for op in OPERATIONS.values())
    first = NAMES.index(LINEAR[0])
    assert tuple(NAMES[first : first + len(LINEAR)]) == LINEAR
    geometry = ["horizontal_flip", "vertical_flip", "scale", "shear_x", "shear_y", "rotate", "translate_x"]
    assert NAMES[:9] == [*geometry, "translate_y", "perspective"]


@pytest.mark.parametrize("broken", [{"pixels": None}, {"limit": None}], ids=["neither", "hard without limit"])
def test_an_operation_that_contradicts_itself_cannot_be_made(broken: dict[str, None]) -> None:
    parts = {"name": "x", "unit": "", "limit": 1.0, "hard": 1.0, "pixels": OPERATIONS["invert"].pixels}
    with pytest.raises(AssertionError, match="x"):
        Operation(**{**parts, **broken})


# What must not change


@pytest.mark.parametrize("name", NAMES)
def test_a_closed_gate_changes_nothing(name: str, images: Tensor, force) -> None:
    skip_unsuited(name, images)
    x = images[:16]
    view = apply(force({name: at_limits(name)[0]}, 16, gates=False), x)
    assert torch.equal(view.images, x)
    assert torch.equal(view.matrix, torch.eye(3, dtype=torch.float64).repeat(16, 1, 1))


@pytest.mark.parametrize("name", [*SIGNED, "perspective", "gaussian_blur", "noise"])
def test_magnitude_zero_changes_nothing(name: str, images: Tensor, force) -> None:
    skip_unsuited(name, images)
    x = images[:16]
    torch.testing.assert_close(apply(force({name: 0.0}, 16), x).images, x, atol=1e-6, rtol=0)


def test_magnitude_zero_of_the_others_changes_what_their_meaning_says_and_no_more(images: Tensor, force) -> None:
    x = images[:16]
    assert torch.equal(apply(force({"erase": 0.0}, 16), x).images, x)
    white = x == 1
    assert torch.equal(apply(force({"solarize": 0.0}, 16), x).images, x.masked_fill(white, 0.0))
    torch.testing.assert_close(apply(force({"posterize": 0.0}, 16), x).images, x, atol=1.0001 / 256, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_images_given_are_not_changed(name: str, images: Tensor, force) -> None:
    skip_unsuited(name, images)
    x = images[:16].clone()
    before = x.clone()
    out = apply(force({name: at_limits(name)[0]}, 16), x).images
    assert torch.equal(x, before)
    assert not torch.equal(out, before)


@pytest.mark.parametrize("name", NAMES)
def test_results_stay_finite_and_within_zero_and_one_up_to_the_hard_range(name: str, images: Tensor, force) -> None:
    skip_unsuited(name, images)
    op, x = OPERATIONS[name], images[:16]
    for m in {*at_limits(name), 0.0, op.hard or 0.0, -(op.hard or 0.0) if op.signed else 0.0}:
        out = apply(force({name: m}, 16), x).images
        assert out.dtype == x.dtype
        assert torch.isfinite(out).all(), m
        assert out.min() >= 0 and out.max() <= 1, (m, out.min().item(), out.max().item() - 1)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_touches_only_the_images_that_drew_it(name: str, images: Tensor, force) -> None:
    skip_unsuited(name, images)
    draw = force({name: at_limits(name)[0]}, 16)
    draw.gates[::2] = False
    out = apply(draw, images[:16]).images
    assert torch.equal(out[::2], images[:16:2])
    assert torch.equal(out[1::2], apply(force({name: at_limits(name)[0]}, 16), images[:16]).images[1::2])


def emptied(cases: list[dict[str, float]], images: Tensor, force) -> list[str]:
    """Cases after which one of 60 images with content (a channel deviates by .1; a crop of sky does not) is black
    (mean under .02) or flat (no channel deviates by a tenth of what it did)."""

    def deviation(x: Tensor) -> Tensor:
        return x.std((2, 3)).amax(1)

    x = images[deviation(images) >= 0.1][:60]
    assert len(x) == 60
    mean, std = x.mean((1, 2, 3)), deviation(x)
    found = []
    for case in cases:
        out = apply(force(case, 60), x).images
        after, ratio = out.mean((1, 2, 3)), deviation(out) / std
        dark, flat = (after < 0.02) & (mean >= 0.02), ratio < 0.1
        if dark.any() or flat.any():
            found.append(
                f"{case}: {int(dark.sum())} black (mean {after.min():.2f}), {int(flat.sum())} flat (x{ratio.min():.2f})"
            )
    return found


def limit_cases(images: Tensor) -> list[tuple[str, float]]:
    return [(name, m) for name in NAMES if suits(name, images) for m in at_limits(name)]


def test_no_image_is_emptied_by_one_operation_at_its_default_limit(images: Tensor, force) -> None:
    assert not emptied([{name: m} for name, m in limit_cases(images)], images, force)


def test_no_image_is_emptied_by_two_operations_at_their_default_limits(images: Tensor, force) -> None:
    pairs = [dict([a, b]) for a, b in combinations(limit_cases(images), 2) if a[0] != b[0]]
    found = emptied(pairs, images, force)
    assert not found, "\n".join([f"{len(found)} of {len(pairs)} pairs empty an image", *found])


# Gradients


def weighted(out: Tensor) -> Tensor:
    """A smooth function of each image, (B,), that depends on every pixel differently."""
    weights = torch.randn(out.shape[1:], generator=generator("weights"), dtype=out.dtype)
    return (torch.sin(3 * out) * weights).flatten(1).mean(1)


@pytest.mark.parametrize("name", PATHWISE)
def test_gradients_to_magnitudes_agree_with_finite_differences(name: str, images: Tensor, force) -> None:
    skip_unsuited(name, images)
    x, h = images[:16].double(), 1e-6 * OPERATIONS[name].limit
    draw = force({name: spread(name, 16)}, 16)
    m = draw.magnitudes.clone().requires_grad_()
    weighted(apply(draw, x, m).images).sum().backward()
    high, low = (weighted(apply(draw, x, draw.magnitudes + step).images) for step in (h, -h))
    numeric = (high - low) / (2 * h)
    assert (numeric != 0).sum() >= 12  # a crop of bright sky is all white at either step
    torch.testing.assert_close(m.grad[:, 0], numeric, rtol=1e-3, atol=1e-3 * numeric.abs().max().item())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("horizontal_flip", "vertical_flip")])
def test_gradients_through_black_and_white_are_finite(name: str, images: Tensor, force) -> None:
    """To the pixels, and to earlier geometry, with the steepest of each operation after it."""
    x = images[:16].clone()
    x[::2] = (x[::2] > 0.5).to(x.dtype)
    hard = -(OPERATIONS[name].hard or 0.0) if OPERATIONS[name].signed else OPERATIONS[name].hard or 0.0
    draw = force({"rotate": 10.0, name: hard}, 16)
    m = draw.magnitudes.clone().requires_grad_()
    weighted(apply(draw, x, m).images).sum().backward()
    assert torch.isfinite(m.grad).all()
    alone = force({name: hard}, 16)
    weighted(apply(alone, x.requires_grad_()).images).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if op.gradient == "none"])
def test_an_operation_without_a_gradient_gives_its_magnitude_none_and_earlier_ones_theirs(
    name: str, images: Tensor, force
) -> None:
    draw = force({"scale": 0.1, name: at_limits(name)[0]}, 16)
    m = draw.magnitudes.clone().requires_grad_()
    weighted(apply(draw, images[:16], m).images).sum().backward()
    assert OPERATIONS[name].range == "endpoint"
    assert (m.grad[:, 1] == 0).all()
    assert (m.grad[:, 0] != 0).any()


@pytest.mark.parametrize("name", ["equalize", "posterize"])
def test_a_quantiser_passes_the_gradient_of_earlier_operations_unchanged(name: str, images: Tensor, force) -> None:
    def gradient(draw: Draw) -> Tensor:
        m = draw.magnitudes.clone().requires_grad_()
        out = apply(draw, images[:16].double(), m).images
        (out * torch.randn(out.shape, generator=generator("quantiser"), dtype=out.dtype)).sum().backward()
        return m.grad[:, 0]

    turn = spread("rotate", 16)
    plain = gradient(force({"rotate": turn}, 16))
    torch.testing.assert_close(gradient(force({"rotate": turn, name: at_limits(name)[0]}, 16)), plain)


# Replay


def mixed_draw(images: Tensor, force, size: int) -> Draw:
    """Every operation, each image with its own random half of the gates open and its own magnitudes."""
    names = [name for name in NAMES if suits(name, images)]
    draw = force({name: spread(name, size) for name in names}, size)
    draw.gates.copy_(torch.rand(draw.gates.shape, generator=generator("gates")) < 0.5)
    return draw


def test_a_draw_applied_again_gives_the_same_bits(images: Tensor, force) -> None:
    draw = mixed_draw(images, force, 48)
    first, again = (apply(draw, images[:48]) for _ in range(2))
    assert torch.equal(first.images, again.images) and torch.equal(first.matrix, again.matrix)


def test_an_image_gets_the_same_bits_in_any_batch(images: Tensor, force) -> None:
    draw = mixed_draw(images, force, 48)
    whole = apply(draw, images[:48])
    order = torch.randperm(48, generator=generator("order"))
    for index in (order, order[:7], order[:1], torch.arange(5, 40)):
        part = apply(draw.rows(index), images[:48][index])
        assert torch.equal(part.images, whole.images[index])
        assert torch.equal(part.matrix, whole.matrix[index])


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_alone_gives_the_same_bits_in_any_batch(name: str, images: Tensor, force) -> None:
    skip_unsuited(name, images)
    draw = force({name: spread(name, 48)}, 48)
    whole = apply(draw, images[:48]).images
    order = torch.randperm(48, generator=generator("order"))
    for index in (order, order[:7], order[:1]):
        assert torch.equal(apply(draw.rows(index), images[:48][index]).images, whole[index])


def test_one_thread_and_two_give_the_same_bits(images: Tensor, force) -> None:
    draw = mixed_draw(images, force, 96)
    views, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            views.append(apply(draw, images[:96]).images)
    finally:
        torch.set_num_threads(before)
    assert views[0].dtype == torch.float32
    assert torch.equal(*views)


def test_half_the_precision_of_the_images_means_the_same(images: Tensor, force) -> None:
    continuous = [n for n in NAMES if suits(n, images) and n not in ("equalize", "solarize", "posterize", "erase")]
    draw = force({name: spread(name, 48) * 0.3 for name in continuous}, 48)
    single, double = apply(draw, images[:48]).images, apply(draw, images[:48].double()).images
    torch.testing.assert_close(single.double(), double, atol=1e-5, rtol=0)


# Oracles


def affine(x: Tensor, **kwargs: float | list[float]) -> Tensor:
    # Without `fill`: with one torchvision weighs the border pixels twice (up to 0.25 different).
    arguments = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0], **kwargs}
    return tv.affine(x, interpolation=InterpolationMode.BILINEAR, **arguments)


def degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


TORCHVISION = {
    "horizontal_flip": lambda x, m: tv.horizontal_flip(x),
    "vertical_flip": lambda x, m: tv.vertical_flip(x),
    "scale": lambda x, m: affine(x, scale=1 + m),
    "shear_x": lambda x, m: affine(x, shear=[degrees(m), 0.0]),
    "shear_y": lambda x, m: affine(x, shear=[0.0, degrees(m)]),
    "rotate": lambda x, m: affine(x, angle=m),
    "translate_x": lambda x, m: affine(x, translate=[m * x.shape[-1], 0.0]),
    "translate_y": lambda x, m: affine(x, translate=[0.0, m * x.shape[-2]]),
    "brightness": lambda x, m: tv.adjust_brightness(x, 1 + m),
    "contrast": lambda x, m: tv.adjust_contrast(x, 1 + m),
    "saturation": lambda x, m: tv.adjust_saturation(x, 1 + m),
    "gray": lambda x, m: tv.rgb_to_grayscale(x, 3),
    "hue": lambda x, m: tv.adjust_hue(x, m),
    "gamma": lambda x, m: tv.adjust_gamma(x, 1 + m),
    "autocontrast": lambda x, m: tv.autocontrast(x),
    "gaussian_blur": lambda x, m: tv.gaussian_blur(x, [min(19, 2 * side - 1) for side in x.shape[:1:-1]], [m, m]),
    "equalize": lambda x, m: tv.equalize(x),
    "solarize": lambda x, m: tv.solarize(x, 1 - m),
    "posterize": lambda x, m: tv.posterize(x, 8 - round(m)),
    "invert": lambda x, m: tv.invert(x),
    "sharpness": lambda x, m: tv.adjust_sharpness(x, 1 + m),
}
KORNIA = {
    "brightness": lambda x, m: kornia.enhance.adjust_brightness_accumulative(x, 1 + m),
    "contrast": lambda x, m: kornia.enhance.adjust_contrast_with_mean_subtraction(x, 1 + m),
    "saturation": lambda x, m: kornia.enhance.adjust_saturation_with_gray_subtraction(x, 1 + m),
    "sharpness": lambda x, m: kornia.enhance.sharpness(x, 1 + m),
    "solarize": lambda x, m: kornia.enhance.solarize(x, 1 - m),
    "invert": lambda x, m: kornia.enhance.invert(x),
    "horizontal_flip": lambda x, m: kornia.geometry.transform.hflip(x),
    "vertical_flip": lambda x, m: kornia.geometry.transform.vflip(x),
    "gray": lambda x, m: kornia.color.rgb_to_grayscale(x).expand_as(x),
    "hue": lambda x, m: kornia.enhance.adjust_hue(x, m * 2 * math.pi),
    "gamma": lambda x, m: kornia.enhance.adjust_gamma(x, 1 + m),
    "gaussian_blur": lambda x, m: kornia.filters.gaussian_blur2d(
        x, tuple(min(19, 2 * side - 1) for side in x.shape[2:]), (m, m)
    ),
}
# Defined by their own seeds and uniforms; each has a test of its own below.
WITHOUT_ORACLE = {"noise", "erase", "perspective", "channel_shift"}
TOLERANCE = {"kornia-gray": 2e-4}  # its luma weights have four digits, torchvision's others


def test_every_operation_has_an_oracle_or_is_named_here() -> None:
    assert set(TORCHVISION) | WITHOUT_ORACLE == set(OPERATIONS)
    assert set(KORNIA) <= set(TORCHVISION)


@pytest.mark.parametrize(
    ("who", "name"),
    [(who, n) for who, table in (("torchvision", TORCHVISION), ("kornia", KORNIA)) for n in table],
)
def test_an_operation_means_what_it_means_elsewhere(who: str, name: str, images: Tensor, force) -> None:
    skip_unsuited(name, images)
    x, op = images[:16], OPERATIONS[name]
    sizes = [0.0] if op.limit is None else [0.35 * op.limit, op.limit, op.hard]
    for m in [*sizes, *(-m for m in sizes if op.signed)]:
        theirs = {"torchvision": TORCHVISION, "kornia": KORNIA}[who][name](x, m)
        tolerance = TOLERANCE.get(f"{who}-{name}", 1e-4)
        torch.testing.assert_close(apply(force({name: m}, 16), x).images, theirs, atol=tolerance, rtol=0)


def test_the_composed_geometry_is_one_torchvision_affine_after_the_flip(images: Tensor, force) -> None:
    names = ["scale", "shear_x", "shear_y", "rotate", "translate_x", "translate_y"]
    m = {name: spread(name, 16) for name in names}
    ours = apply(force({"horizontal_flip": 0.0, **m}, 16), images[:16]).images
    for i, x in enumerate(tv.horizontal_flip(images[:16])):
        scale, shear_x, shear_y, angle, right, down = (m[name][i].item() for name in names)
        theirs = affine(
            x,
            scale=1 + scale,
            shear=[degrees(shear_x), degrees(shear_y)],
            angle=angle,
            translate=[right * x.shape[-1], down * x.shape[-2]],
        )
        torch.testing.assert_close(ours[i], theirs, atol=1e-4, rtol=0)


def test_the_warp_is_kornias_warp(images: Tensor, force) -> None:
    x = images[:16]
    height, width = x.shape[-2:]
    geometry = [name for name, op in OPERATIONS.items() if op.matrix]
    matrix = apply(force({name: spread(name, 16, seed=1) for name in geometry}, 16), x).matrix
    to_corner = torch.eye(3, dtype=torch.float64)
    to_corner[:2, 2] = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    pixels = (to_corner @ matrix @ to_corner.inverse()).float()
    theirs = kornia.geometry.transform.warp_perspective(x, pixels, (height, width), align_corners=True)
    torch.testing.assert_close(warp(x, matrix), theirs, atol=1e-4, rtol=0)


def test_the_matrix_says_where_a_pixel_went(force) -> None:
    dot = torch.zeros(1, 1, 15, 15)
    dot[..., 7, 10] = 1.0  # 3 to the right of the centre
    draw = force({"horizontal_flip": 0.0, "rotate": 90.0, "translate_x": 2 / 15}, 1)
    view = apply(draw, dot)
    x, y, _ = (view.matrix[0] @ torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64)).round().int().tolist()
    assert (x, y) == (2, -3)  # flipped to -3, turned clockwise to (0, -3), moved by 2
    assert view.images[0, 0, 7 + y, 7 + x] == pytest.approx(1.0, abs=1e-5)


def test_the_linear_group_is_clamped_once_after_its_last_member(photos: Tensor, force) -> None:
    x = photos[:8]
    ours = apply(force({"brightness": 0.6, "contrast": -0.6}, 8), x).images
    bright = x * 1.6
    gray = tv.rgb_to_grayscale(bright).mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(ours, (gray + 0.4 * (bright - gray)).clamp(0, 1))
    assert not torch.allclose(ours, tv.adjust_contrast(tv.adjust_brightness(x, 1.6), 0.4), atol=1e-2)


def test_noise_has_the_deviation_it_says_and_differs_between_images(force) -> None:
    out = apply(force({"noise": 0.1}, 8), torch.full((8, 3, 32, 32), 0.5)).images
    assert out.std((1, 2, 3)).sub(0.1).abs().max() < 0.01  # 3,072 values each: one standard error is 0.0013
    assert torch.corrcoef(out.flatten(1)).fill_diagonal_(0).abs().max() < 0.1


def test_erase_blanks_the_rectangle_of_its_two_uniforms(force) -> None:
    draw = force({"erase": 0.5}, 1)
    draw.uniforms[0, 0, 1:3] = torch.tensor([0.25, 0.5])
    out = apply(draw, torch.ones(1, 1, 16, 16)).images[0, 0]
    expected = torch.ones(16, 16)
    expected[0:8, 4:12] = 0  # centre a quarter down, in the middle across
    assert torch.equal(out, expected)
