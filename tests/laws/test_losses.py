"""Laws over the table of losses, and numbers worked out by hand."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, kl_div

from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Outputs, ViewBatch
from kdsearch.losses import relational
from kdsearch.losses.features import at_loss, hint_loss, nfd_loss
from kdsearch.losses.logits import dkd_loss, kd_loss, standardised_loss
from kdsearch.losses.loss import Loss
from kdsearch.losses.projection import Projections
from kdsearch.losses.relational import dist_loss, rkd_angle_loss, rkd_distance_loss, sp_loss
from kdsearch.losses.table import TABLE as LOSSES

FUNCTIONS: dict[str, list[Callable]] = {
    "kd": [kd_loss],
    "dkd": [dkd_loss],
    "standardised": [standardised_loss],
    "dist": [dist_loss],
    "hint": [hint_loss],
    "at": [at_loss],
    "nfd": [nfd_loss],
    "rkd": [rkd_distance_loss, rkd_angle_loss],
    "sp": [sp_loss],
}
RELATIONAL = [name for name, kind in LOSSES.items() if kind.relational]
POINTS = ["kd", "standardised"]  # that take dense logits as well
FEATURES = [name for name, kind in LOSSES.items() if kind.compares == "features"]
B = 6


def logits(*seed: int | str, size: int = 16, classes: int = 5) -> Tensor:
    return 4 * torch.randn(size, classes, generator=generator("logits", *seed), dtype=torch.float64)


def maps(*seed: int | str, size: int = B, channels: int = 3, side: int = 3) -> Tensor:
    shape = (size, channels, side, side)
    return 0.5 + torch.randn(shape, generator=generator("maps", *seed), dtype=torch.float64)


def said(name: str, *seed: int | str) -> Tensor:
    """What a network says of B images that the loss of this name compares."""
    return maps(*seed) if name in FEATURES else logits(*seed, size=B)


def made(name: str) -> Loss:
    return LOSSES[name]("layer") if name in FEATURES else LOSSES[name]()


def views(target: Tensor) -> ViewBatch:
    """Views that did not move, with these labels."""
    size = len(target)
    images, none = torch.rand(size, 1, 8, 8, generator=generator("views")), torch.zeros(size).long()
    return ViewBatch(images, images, target, torch.arange(size), none, torch.eye(3).double().expand(size, 3, 3))


def value(name: str, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
    def outputs(x: Tensor) -> Outputs:
        return Outputs(x.new_zeros(len(x), 5), {"layer": x}) if name in FEATURES else Outputs(x)

    target = torch.arange(len(student)) % student.shape[1] if target is None else target
    return made(name)(outputs(student), outputs(teacher), views(target))


def gradient(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    value(name, student, teacher).sum().backward()
    return student.grad


# The table


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_number_per_image_and_not_negative(name: str) -> None:
    assert (
        made(name).per == ("point" if name in POINTS else "image") and made(name).relational == LOSSES[name].relational
    )
    assert made(name).pairs == ((("layer", "layer"),) if name in FEATURES else ())
    result = value(name, said(name, "s"), said(name, "t"))
    assert result.shape == (B,)
    assert (result > 0).all()


@pytest.mark.parametrize("name", POINTS)
def test_a_loss_per_point_takes_each_point_of_dense_logits_as_an_image(name: str) -> None:
    student, teacher = (torch.randn(2, 5, 3, 4, generator=generator(who)) for who in ("s", "t"))
    found = LOSSES[name]()(Outputs(student), Outputs(teacher), views(torch.zeros(2)))
    points = [Outputs(logits.movedim(1, 3).flatten(0, 2)) for logits in (student, teacher)]
    torch.testing.assert_close(found, LOSSES[name]()(*points, views(torch.zeros(24))).view(2, 3, 4))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_zero_where_student_and_teacher_agree(name: str) -> None:
    x = said(name, "t")
    torch.testing.assert_close(value(name, x, x), torch.zeros(B).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(name, x, x), torch.zeros_like(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_is_its_images_one_by_one_unless_the_loss_is_relational(name: str) -> None:
    student, teacher, target = said(name, "s"), said(name, "t"), torch.tensor([4, 0, 2, 1, 3, 3])
    rows = [slice(i, i + 1) for i in range(B)]
    single = torch.cat([value(name, student[i], teacher[i], target[i]) for i in rows])
    assert torch.allclose(value(name, student, teacher, target), single) == (name not in RELATIONAL)


@pytest.mark.parametrize("name", RELATIONAL)
def test_shares_go_with_their_images(name: str) -> None:
    student, teacher, order = said(name, "s"), said(name, "t"), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(value(name, student[order], teacher[order]), value(name, student, teacher)[order])


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_to_the_student_is_right_and_none_reaches_the_teacher(name: str) -> None:
    student, teacher = said(name, "s").requires_grad_(), said(name, "t").requires_grad_()
    value(name, student, teacher).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: value(name, s, teacher), (student,))


def extremes(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    x, flat = said(name, "s").float(), torch.full_like(said(name, "s"), 3.0).float()
    twice, dead = x.clone(), x.clone()
    twice[1], dead[1] = twice[0], 0
    sure = 200 * x.sign()
    return {
        "sure": (sure, sure.flip(0)),
        "a flat student": (flat, x),
        "a flat teacher": (x, flat),
        "both flat": (flat, flat),
        "zeros": (0 * x, x),
        "an image twice": (twice, x),
        "an image twice in both": (twice, twice),
        "an image twice for the teacher": (x, twice),
        "an image without features": (dead, x),
    }


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", extremes("kd"))
def test_values_and_gradients_stay_finite(name: str, case: str) -> None:
    student, teacher = extremes(name)[case]
    assert torch.isfinite(value(name, student, teacher)).all()
    slope = gradient(name, student, teacher)
    assert torch.isfinite(slope).all() and slope.abs().max() < 1e4


@pytest.mark.parametrize("name", LOSSES)
def test_two_networks_that_are_flat_agree(name: str) -> None:
    flat = torch.full_like(said(name, "s"), 3.0)
    assert value(name, flat, flat).abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    student, teacher = said(name, "s").float(), said(name, "t").float()
    half = value(name, student.bfloat16(), teacher.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value(name, student.bfloat16().float(), teacher.bfloat16().float()))
    assert half.mean().item() == pytest.approx(value(name, student, teacher).mean().item(), rel=0.05)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_where_it_comes_from_and_what_its_shapes_are(name: str) -> None:
    kind = LOSSES[name]
    assert set(FUNCTIONS) == set(LOSSES) and kind.name == name and kind.says and kind.status
    for function in FUNCTIONS[name]:
        text = function.__doc__
        assert all(part in text for part in ("Args:", "Returns:\n        (B,", "Reference:\n", ">>>"))
        assert kind.reference.split()[0] in text.split("Reference:")[1]


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in FEATURES])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_above_zero(name: str, temperature: float) -> None:
    with pytest.raises(KdsearchError, match=rf"^{name}: temperature .*; allowed: above 0"):
        LOSSES[name](temperature=temperature)


# Pairs of features


def features(**tensors: Tensor) -> Outputs:
    return Outputs(torch.zeros(B, 5), tensors)


@pytest.mark.parametrize("name", FEATURES)
def test_several_pairs_are_summed(name: str) -> None:
    student, teacher = features(a=maps("a"), b=maps("b")), features(c=maps("c"), b=maps("d"))
    one, other = LOSSES[name]("a", "c"), LOSSES[name]("b")
    both = LOSSES[name](pairs=[("a", "c"), ("b", "b")])
    assert both.pairs == (("a", "c"), ("b", "b")) == one.pairs + other.pairs
    assert both.name.startswith(f"{name}, a to c; b to b")
    parts = [loss(student, teacher, views(torch.zeros(B))) for loss in (one, other, both)]
    torch.testing.assert_close(parts[0] + parts[1], parts[2])


@pytest.mark.parametrize("name", FEATURES)
def test_a_loss_on_features_needs_a_pair_and_finds_it(name: str) -> None:
    with pytest.raises(KdsearchError, match=rf"^{name}: no pair of layers; allowed: module paths"):
        LOSSES[name]()
    with pytest.raises(KdsearchError, match=r"(?s)features of the student 'layr'; did you mean 'layer'\?.*teacher 'x'"):
        LOSSES[name]("layr", "x")(features(layer=maps()), features(layer=maps()), views(torch.zeros(B)))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "says"),
    [
        ("hint", (B, 3, 4, 4), (B, 5, 4, 4), "different numbers of channels; allowed: as many in both, a projection"),
        ("hint", (B, 7, 8), (B, 7, 9), "different numbers of channels; allowed: as many in both, a projection"),
        ("hint", (B, 1), (B, 9), "different numbers of channels; allowed: as many in both, a projection"),
        ("hint", (B, 7, 8), (B, 9, 8), "different numbers of tokens; allowed: layers with as many"),
        ("hint", (B, 8, 4, 4), (B, 8), "both vectors (B, D), or both tokens (B, N, D), or both maps (B, C, H, W)"),
        ("nfd", (B, 1, 4, 4), (B, 5, 4, 4), "different numbers of channels; allowed: as many in both, a projection"),
        ("nfd", (B, 7, 8), (B, 7, 8), "allowed: both maps (B, C, H, W)"),
        ("at", (B, 8), (B, 8), "allowed: both maps (B, C, H, W)"),
        ("at", (B, 8, 4, 4), (1, 8, 4, 4), "different numbers of images"),
        ("rkd", (B, 8), (1, 8), "allowed: vectors, tokens or maps of the same images"),
        ("sp", (B, 8), (B,), "allowed: vectors, tokens or maps of the same images"),
    ],
)
def test_features_that_cannot_be_compared_are_named(name: str, student: tuple, teacher: tuple, says: str) -> None:
    with pytest.raises(KdsearchError) as raised:
        own, others = features(a=torch.zeros(student)), features(b=torch.zeros(teacher))
        LOSSES[name]("a", "b")(own, others, views(torch.zeros(B)))
    assert str(raised.value).startswith(f"{name}: student 'a' {student}, teacher 'b' {teacher}: ")
    assert says in str(raised.value)


@pytest.mark.parametrize("function", [hint_loss, at_loss])
def test_the_larger_map_is_averaged_down_to_the_smaller(function: Callable) -> None:
    large, small = maps("l", side=6), maps("s", side=3)
    expected = function(adaptive_avg_pool2d(large, 3), small)
    torch.testing.assert_close(function(large, small), expected)
    torch.testing.assert_close(function(small, large), expected)


def test_a_normalised_map_of_the_student_has_the_size_of_the_teachers() -> None:
    large, small = maps("l", side=6), maps("s", side=3)  # halved bilinearly: the means of two by two
    expected = nfd_loss(adaptive_avg_pool2d(large, 3), small)
    torch.testing.assert_close(nfd_loss(large, small), expected)
    assert nfd_loss(maps("s", side=3), maps("t", side=5)).shape == (B,)


@pytest.mark.parametrize("name", ["hint", "nfd"])
def test_a_loss_that_projects_compares_the_projected_features_of_its_pair_alone(name: str) -> None:
    loss = LOSSES[name](pairs=[("a", "c"), ("b", "d")])
    teacher = features(c=maps("c", channels=5), d=maps("d"))
    student = features(a=maps("a"), b=maps("b"), **{"a to c": maps("p", channels=5)})
    function = FUNCTIONS[name][0]
    expected = function(maps("p", channels=5), maps("c", channels=5)) + function(maps("b"), maps("d"))
    torch.testing.assert_close(loss(student, teacher, views(torch.zeros(B))), expected)
    assert [name for name in LOSSES if made(name).projects] == ["hint", "nfd"]


def test_a_projection_is_made_for_each_pair_of_layers_with_other_channels_and_fixed_by_the_seed() -> None:
    student = features(a=maps("a").float(), b=torch.randn(B, 7, 4), c=torch.randn(B, 6))
    teacher = features(a=maps("t", channels=5).float(), b=torch.randn(B, 7, 9), c=torch.randn(B, 6))
    pairs = [("a", "a"), ("b", "b"), ("c", "c")]
    losses = [LOSSES["hint"](pairs=pairs), LOSSES["nfd"]("a"), LOSSES["at"]("a"), LOSSES["kd"]()]
    one, again, other = (Projections(losses, student, teacher, seed) for seed in (1, 1, 2))
    assert one.pairs == [("a", "a"), ("b", "b")]  # the same for hint and nfd; none where the channels agree
    shapes = {name: tuple(x.shape) for name, x in one(student).features.items() if " to " in name}
    assert shapes == {"a to a": (B, 5, 3, 3), "b to b": (B, 7, 9)}
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert (losses[0](one(student), teacher, views(torch.zeros(B))) > 0).all()


def test_normalised_maps_leave_out_what_the_geometry_filled() -> None:
    """Moved by half its side: of 4 columns of features the first two were filled, whatever stands there."""
    student, teacher, other = maps("s", side=4), maps("t", side=4), maps("t", side=4)
    other[..., :2] = maps("filled", side=4)[..., :2]
    matrix = torch.eye(3).double().repeat(B, 1, 1)
    matrix[:, 0, 2] = 4.0
    moved = replace(views(torch.zeros(B)), matrix=matrix)
    whole, valid = LOSSES["nfd"]("x"), LOSSES["nfd"]("x", valid=True)
    value = [loss(features(x=student), features(x=t), moved) for loss in (valid, whole) for t in (teacher, other)]
    torch.testing.assert_close(value[0], value[1])
    assert (value[2] - value[3]).abs().min() > 1e-3
    torch.testing.assert_close(value[0], nfd_loss(student[..., 2:], teacher[..., 2:]))
    still = views(torch.zeros(B))
    torch.testing.assert_close(valid(features(x=student), features(x=teacher), still), value[2])


# Soft targets


def test_soft_targets_worked_out_by_hand() -> None:
    """Teacher (3/4, 1/4) at temperature 4, student (1/2, 1/2): .75 log 1.5 + .25 log .5, times 16."""
    teacher = torch.tensor([[4 * math.log(3), 0.0], [1.0, 1.0]], dtype=torch.float64)
    loss = kd_loss(torch.zeros(2, 2).double(), teacher, 4.0)
    assert loss[0].item() == pytest.approx(16 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    assert loss[0].item() == pytest.approx(2.0930, abs=1e-4)
    assert loss.mean().item() == pytest.approx(1.0465, abs=1e-4)  # over 2 images, not over 4 elements


def test_soft_targets_are_torchs_divergence_in_direction_and_size() -> None:
    student, teacher = logits("s"), logits("t")
    arguments = (student / 3).log_softmax(1), (teacher / 3).softmax(1)
    torch.testing.assert_close(kd_loss(student, teacher, 3.0).mean(), 9 * kl_div(*arguments, reduction="batchmean"))


def test_the_default_distillation_loss_has_temperature_four() -> None:
    expected = kd_loss(logits("s"), logits("t"), 4.0)
    torch.testing.assert_close(value("kd", logits("s"), logits("t")), expected)


def test_the_temperature_changes_the_gradient_in_shape_and_not_in_size() -> None:
    sizes = []
    for temperature in (50.0, 100.0):
        student = (logits("s") / 10).requires_grad_()
        kd_loss(student, logits("t") / 10, temperature).sum().backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


# Decoupled and standardised


def log(*shares: float) -> Tensor:
    """Logits of which these are the probabilities."""
    return torch.tensor(shares, dtype=torch.float64).log()


def test_decoupled_worked_out_by_hand() -> None:
    """Teacher (1/2, 1/3, 1/6), student even, label 0: TKD (1/2) log(9/8), NKD (2/3) log(4/3) + (1/3) log(2/3)."""
    teacher, student, label = log(1 / 2, 1 / 3, 1 / 6)[None], torch.zeros(1, 3).double(), torch.tensor([0])
    tkd, nkd = 0.5 * math.log(9 / 8), 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert dkd_loss(student, teacher, label, temperature=1.0).item() == pytest.approx(tkd + 8 * nkd)
    assert dkd_loss(student, teacher, label, temperature=1.0).item() == pytest.approx(0.51196, abs=1e-5)
    assert dkd_loss(4 * student, 4 * teacher, label).item() == pytest.approx(16 * (tkd + 8 * nkd))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_the_target_part_and_the_rest_by_its_share(temperature: float) -> None:
    student, teacher, label = logits("s"), logits("t"), torch.arange(16) % 5
    tkd = dkd_loss(student, teacher, label, beta=0.0, temperature=temperature)
    nkd = dkd_loss(student, teacher, label, alpha=0.0, beta=1.0, temperature=temperature)
    share = (teacher / temperature).softmax(1).gather(1, label[:, None])[:, 0]
    torch.testing.assert_close(tkd + (1 - share) * nkd, kd_loss(student, teacher, temperature))


def test_the_rest_does_not_see_the_label() -> None:
    student, teacher, label = logits("s").requires_grad_(), logits("t"), torch.arange(16) % 5
    rest = dkd_loss(student, teacher, label, alpha=0.0)
    rest.sum().backward()
    assert (student.grad.gather(1, label[:, None]) == 0).all()
    sure = teacher.scatter_add(1, label[:, None], torch.full((16, 1), 1e4).double())
    torch.testing.assert_close(dkd_loss(student, sure, label, alpha=0.0), rest)


def test_the_weight_of_decoupled_rises_over_a_twelfth_of_the_phase() -> None:
    loss = LOSSES["dkd"]()
    assert [round(loss.weight_at(p), 6) for p in (0.0, 1 / 24, 1 / 12, 1.0)] == [0.0, 0.5, 1.0, 1.0]


def test_standardised_worked_out_by_hand() -> None:
    """Two logits become 1 / sqrt 2 and its negative: at temperature 2 the log odds of the two are 1 / sqrt 2."""
    student, teacher = torch.tensor([[0.0, 3.0]]).double(), torch.tensor([[5.0, 1.0]]).double()
    odds = 1 / math.sqrt(2)
    by_hand = 4 * odds * (2 / (1 + math.exp(-odds)) - 1)
    assert standardised_loss(student, teacher).item() == pytest.approx(by_hand) == pytest.approx(0.9603, abs=1e-4)


def test_standardised_does_not_see_shift_and_scale_of_an_images_logits() -> None:
    student, teacher = logits("s"), logits("t")
    scale, shift = torch.rand(2, 16, 1, generator=generator("affine")).double() * 9 + 0.1
    expected = standardised_loss(student, teacher)
    torch.testing.assert_close(standardised_loss(scale * student - shift, shift * teacher + scale), expected)
    assert (standardised_loss(-student, teacher) - expected).abs().min() > 1e-3


# Features


def test_attention_transfer_worked_out_by_hand() -> None:
    """Means of squares (5, 2) and (1, 0): half of `|(5, 2) / sqrt 29 - (1, 0)|^2 = 2 - 10 / sqrt 29`."""
    student = torch.tensor([[[[3.0, 0.0]], [[1.0, 2.0]]]]).double()
    result = at_loss(student, torch.tensor([[[[7.0, 0.0]]]]).double())
    assert result.item() == pytest.approx(1 - 5 / math.sqrt(29)) == pytest.approx(0.07152, abs=1e-5)


def test_attention_does_not_see_scale_and_order_of_channels() -> None:
    student, teacher = maps("s"), maps("t", channels=4)
    expected = at_loss(student, teacher)
    torch.testing.assert_close(at_loss(-3 * student.flip(1), 0.2 * teacher.flip(1)), expected)
    assert (at_loss(student + 1, teacher) - expected).abs().min() > 1e-4


def test_hints_of_tokens_and_vectors_worked_out_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert hint_loss(tokens, torch.zeros(2, 2, 2)).tolist() == [7.5, 1.0]
    assert hint_loss(tokens[:, 0], torch.zeros(2, 2)).tolist() == [2.5, 0.0]


def test_normalised_features_worked_out_by_hand() -> None:
    """(1, 2, 3) and (1, 3, 2) correlate by 1/2: 2 (1 - 1/2)."""
    student, teacher = (torch.tensor(x).double().view(1, 1, 1, 3) for x in ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]))
    assert nfd_loss(student, teacher, eps=0).item() == pytest.approx(1.0)


def test_normalised_features_are_two_times_one_minus_the_correlation() -> None:
    student, teacher = maps("s"), maps("t")
    pairs = zip(student.flatten(0, 1).flatten(1), teacher.flatten(0, 1).flatten(1), strict=True)
    r = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).view(B, 3)
    torch.testing.assert_close(nfd_loss(student, teacher, eps=0), 2 * (1 - r).mean(1))


def test_normalised_features_do_not_see_scale_and_shift_of_a_channel_but_its_sign() -> None:
    f, scale, shift = maps("t"), torch.tensor([0.5, 2.0, 9.0]).view(3, 1, 1), torch.tensor([1.0, -4.0, 0.0])
    assert nfd_loss(scale * f + shift.view(3, 1, 1), f).max() < 1e-8
    torch.testing.assert_close(nfd_loss(-scale * f, f, eps=0), torch.full((B,), 4.0).double())
    assert hint_loss(scale * f, f).min() > 0.1


def test_pixels_that_are_not_valid_change_nothing() -> None:
    student, teacher, valid = maps("s"), maps("t"), torch.ones(B, 1, 3, 3, dtype=torch.bool)
    valid[:, :, 0] = False
    inside = nfd_loss(student[:, :, 1:], teacher[:, :, 1:])
    torch.testing.assert_close(nfd_loss(student, teacher, valid), inside)
    torch.testing.assert_close(nfd_loss(student + ~valid * 50, teacher, valid), inside)
    assert (nfd_loss(student, teacher, ~valid & valid) == 0).all()


# Relations between images


def test_correlation_worked_out_by_hand() -> None:
    """Each image correlates by 1/2 over the classes, the classes by 1, -1 and 1 over the images: 1/2 + 2/3."""
    teacher = torch.stack([log(1 / 2, 1 / 3, 1 / 6), log(1 / 6, 1 / 2, 1 / 3)])
    student = torch.stack([log(1 / 3, 1 / 2, 1 / 6), log(1 / 6, 1 / 3, 1 / 2)])
    assert dist_loss(student, teacher, intra=0.0).tolist() == pytest.approx([1 / 2] * 2)
    assert dist_loss(student, teacher, inter=0.0).tolist() == pytest.approx([2 / 3] * 2)
    result = dist_loss(4 * student, 4 * teacher, temperature=4.0)
    assert result.tolist() == pytest.approx([16 * 7 / 6] * 2)


def test_correlation_is_torchs_over_classes_and_over_images() -> None:
    student, teacher = logits("s"), logits("t")
    p, q = student.softmax(1), teacher.softmax(1)
    rows = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p, q, strict=True)])
    columns = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p.T, q.T, strict=True)])
    torch.testing.assert_close(dist_loss(student, teacher, intra=0.0), 1 - rows)
    torch.testing.assert_close(dist_loss(student, teacher, inter=0.0).mean(), 1 - columns.mean())


def test_correlation_does_not_see_scale_and_shift_of_probabilities() -> None:
    """A mixture with even probabilities: the same for all images, or over the classes also one for each."""
    teacher, share = logits("t"), torch.linspace(0.1, 0.9, 16).double()[:, None]
    p = teacher.softmax(1)
    assert dist_loss((0.3 * p + 0.7 / 5).log(), teacher).max() < 1e-9
    own = (share * p + (1 - share) / 5).log()
    assert dist_loss(own, teacher, intra=0.0).max() < 1e-9 < dist_loss(own, teacher).min()


COLLINEAR = torch.tensor([[0.0], [1.0], [2.0]]).double()
EQUILATERAL = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]]).double()


def test_distances_worked_out_by_hand() -> None:
    """1, 2, 1 become 3/4, 3/2, 3/4 beside 1, 1, 1: half squares 1/32 and 1/8, a third of their sum at each image."""
    result = rkd_distance_loss(EQUILATERAL, COLLINEAR)
    assert result.tolist() == pytest.approx([5 / 96, 2 / 96, 5 / 96])
    at_one_point = torch.ones(3, 2).double()  # as far apart as the shortest distance, hence as the equilateral ones
    torch.testing.assert_close(rkd_distance_loss(at_one_point, COLLINEAR), result)


def test_an_image_that_is_there_twice_has_no_angle_and_no_gradient_of_its_own() -> None:
    twice, teacher = maps("s").flatten(1), maps("t").flatten(1)
    twice[1] = twice[0]
    slope = torch.autograd.functional.jacobian(lambda x: rkd_angle_loss(x, teacher).sum(), twice)
    assert slope.abs().max() < 1  # a direction of length 0 would have 1 / 1e-6


def test_angles_worked_out_by_hand() -> None:
    """Cosines 1, -1, 1 beside 1/2: smooth L1 1/8, 1, 1/8, twice among the nine."""
    result = rkd_angle_loss(EQUILATERAL, COLLINEAR)
    assert result.tolist() == pytest.approx([1 / 36, 2 / 9, 1 / 36])
    both = value("rkd", EQUILATERAL, COLLINEAR)
    assert both.tolist() == pytest.approx([25 * 5 / 96 + 50 / 36, 25 * 2 / 96 + 100 / 9, 25 * 5 / 96 + 50 / 36])


@pytest.mark.parametrize("function", FUNCTIONS["rkd"])
def test_relations_do_not_see_turns_shifts_and_one_scale_but_several(function: Callable) -> None:
    x = maps("t").flatten(1)
    turn = torch.linalg.qr(torch.randn(27, 27, generator=generator("turn")).double()).Q
    assert function(3 * x @ turn + 5, x).max() < 1e-20
    assert function(x * torch.linspace(0.1, 3, 27).double(), x).min() > 1e-5


@pytest.mark.parametrize("function", [*FUNCTIONS["rkd"], sp_loss])
def test_relations_compare_any_numbers_of_channels_and_positions(function: Callable) -> None:
    assert function(maps("s", channels=2, side=4), maps("t", channels=5)).shape == (B,)
    tokens = maps("s").flatten(2).mT
    assert (function(tokens, maps("t")) > 0).all()


def test_distances_and_angles_see_the_mean_over_positions() -> None:
    for function in FUNCTIONS["rkd"]:
        expected = function(maps("s").mean((2, 3)), maps("t").mean((2, 3)))
        torch.testing.assert_close(function(maps("s"), maps("t").flatten(2).mT), expected)


def test_angles_in_parts_are_the_angles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = said("rkd", "s"), said("rkd", "t")
    at_once, slope = value("rkd", student, teacher), gradient("rkd", student, teacher)
    calls = []
    one = relational._angles_at
    monkeypatch.setattr(relational, "_angles_at", lambda *given: calls.append(given[2:]) or one(*given))
    monkeypatch.setattr(relational, "MOST_NUMBERS", 4 * B * B)
    torch.testing.assert_close(value("rkd", student, teacher), at_once)
    assert calls == [(0, 4), (4, 8)]
    torch.testing.assert_close(gradient("rkd", student, teacher), slope)


def test_too_few_images_have_no_relations() -> None:
    s, t = maps("s"), maps("t")
    assert rkd_distance_loss(s[:1], t[:1]).tolist() == [0.0]
    assert rkd_angle_loss(s[:2], t[:2]).abs().max() < 1e-12
    assert sp_loss(s[:1], t[:1]).tolist() == [0.0]
    assert dist_loss(logits("s")[:1], logits("t")[:1], inter=0.0).tolist() == [0.0]
    for name in RELATIONAL:
        slope = gradient(name, said(name, "s")[:1], said(name, "t")[:1])
        assert torch.isfinite(slope).all() and (name == "dist" or slope.abs().max() < 1e-12)


def test_similarity_worked_out_by_hand() -> None:
    """Rows (1, 1) / sqrt 2 beside (1, 0) and (0, 1): half of 2 - sqrt 2."""
    result = sp_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double(), torch.eye(2).double())
    assert result.tolist() == pytest.approx([1 - 1 / math.sqrt(2)] * 2)


def test_similarity_does_not_see_turns_and_scale_but_shifts() -> None:
    student, teacher = maps("s").flatten(1), maps("t").flatten(1)
    turn = torch.linalg.qr(torch.randn(27, 27, generator=generator("turn")).double()).Q
    expected = sp_loss(student, teacher)
    torch.testing.assert_close(sp_loss(4 * student @ turn, teacher), expected)
    assert (sp_loss(student + 3, teacher) - expected).abs().min() > 1e-5
