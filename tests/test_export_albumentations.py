"""The dict for albumentations: what it serialises itself, our pixels for our draws, our rates and magnitudes."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from albumentations.augmentations.pixel import functional as pixel_functions
from scipy.stats import binomtest, kstest
from torch import Tensor

from kdsearch.augment.export import differing_operations, export, omitted_operations
from kdsearch.augment.export.albumentations import DIFFERENT, LEFT_OUT, VERSION
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import Limits, PolicySpec, Setting, Snapshot
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator, normal_field
from kdsearch.core.values import Draw

Json = dict[str, Any]
EXPORTED = [name for name in OPERATIONS if name not in LEFT_OUT]
WARPS = ("scale", "shear_x", "shear_y", "rotate", "translate_x", "translate_y")
STEPS = (0.13, 0.37, 0.59, 0.83, 1.0)  # shares of the largest magnitude that has a meaning


def policy_of(settings: dict[str, Setting], n: int = 1, fill: str = "zero") -> PolicySpec:
    operations = {
        name: Limits(unit=OPERATIONS[name].unit, limit=OPERATIONS[name].hard, range=OPERATIONS[name].range)
        for name in settings
    }
    moment = Snapshot(progress=1.0, settings=settings)
    return PolicySpec(operations_per_image=n, fill=fill, operations=operations, schedule=(moment,))


def exactly(name: str, magnitude: float = 0.0) -> Setting:
    has = OPERATIONS[name].hard is not None
    size = abs(magnitude) if has else None
    return Setting(probability=1.0, low=size, high=size)


def ranges(share: float = 0.5, probability: float = 0.8) -> dict[str, Setting]:
    """Every operation, from a third to the whole of a share of its largest magnitude."""
    return {
        name: Setting(probability=probability, low=op.hard and share * op.hard / 3, high=op.hard and share * op.hard)
        for name, op in OPERATIONS.items()
    }


def exported(spec: PolicySpec) -> Json:
    return json.loads(export(spec, "albumentations"))


def load(data: Json) -> Any:
    """What albumentations makes of a dict; it says by a warning that it did not understand."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return A.from_dict(data)


def places(data: Json) -> list[Json]:
    """The dicts of the operations, in table order."""
    (some,) = data["transform"]["transforms"]
    return some["transforms"]


def replayed(decided: dict[str, tuple[float, float]], fill: str = "zero") -> A.Compose:
    """The policy that carries out one decision: ranges are points, the signs and the channel are chosen.

    Args:
        decided: Magnitude, and number in [0, 1) that chose the channel, by operation.
    """
    settings = {name: exactly(name, magnitude) for name, (magnitude, _) in decided.items()}
    data = exported(policy_of(settings, len(settings), fill))
    (some,) = data["transform"]["transforms"]
    for i, (name, place) in enumerate(zip(settings, some["transforms"], strict=True)):
        if place["__class_fullname__"] == "OneOf":
            magnitude, u = decided[name]
            index = int(magnitude < 0) + (2 * int(3 * u) if name == "channel_shift" else 0)
            some["transforms"][i] = {**place["transforms"][index], "p": 1.0}
    return load(data)


def one(name: str, magnitude: float, size: int, fill: str = "zero") -> Draw:
    """A draw that applies one operation to every image."""
    u = torch.rand(size, 1, 10, generator=generator("albumentations", name, f"{magnitude:g}"), dtype=torch.float64)
    u[..., 1] = u[:1, :, 1]  # one channel for all
    on, m = torch.ones(size, 1), torch.full((size, 1), magnitude, dtype=torch.float64)
    return Draw((name,), (on * 0).long(), on.bool(), on.double(), u, m, torch.arange(size), fill)


def numpy_image(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.movedim(0, -1).numpy())


def tensor_image(image: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(image).movedim(-1, 0)
    return tensor / 255 if tensor.dtype == torch.uint8 else tensor


def off(name: str, magnitude: float, images: Tensor, fill: str = "zero") -> Tensor:
    """How far albumentations is from us on images, in 255ths, signed."""
    draw = one(name, magnitude, len(images), fill)
    transform = replayed({name: (magnitude, float(draw.uniforms[0, 0, 1]))}, fill)
    theirs = torch.stack([tensor_image(transform(image=numpy_image(image))["image"]) for image in images])
    ours = apply(draw, images).images
    assert theirs.shape == ours.shape
    return 255 * (theirs - ours)


@pytest.fixture(scope="module")
def pictures(photos: Tensor, digits_images: Tensor) -> dict[str, Tensor]:
    """Real images as uint8: 3x32x32, 3x96x64 and 1x16x16."""
    larger = photos[:108].view(18, 6, 3, 32, 32)  # six crops to a sheet
    sheets = larger.view(18, 3, 2, 3, 32, 32).permute(0, 3, 1, 4, 2, 5).reshape(18, 3, 96, 64)
    kinds = {"photos": photos[:12], "sheets": sheets[:6], "digits": digits_images[:12]}
    return {kind: (255 * images).round().to(torch.uint8) for kind, images in kinds.items()}


# How far pixels may be from ours, as measured, in 255ths: greatest for uint8, mean for uint8, greatest for float32.
ROUNDED = (0.51, 0.3, 0.03)
BOUNDS: dict[str, tuple[float, float, float]] = {
    **dict.fromkeys(("horizontal_flip", "vertical_flip", "invert"), (1e-3, 1e-3, 1e-3)),
    "solarize": (1e-3, 1e-3, 1e-3),
    "channel_shift": (1.0, 0.9, 1e-3),
    "saturation": (1.0, 0.35, 0.03),
    "gray": (0.6, 0.3, 0.03),
    "brightness": (1.01, 0.5, 1e-3),
    "contrast": (1.1, 0.6, 0.03),
    "gamma": (1.0, 0.6, 1e-3),
    "posterize": (1.0, 0.5, 1.01),
    "gaussian_blur": ROUNDED,
    "hue": (12.0, 0.7, 0.01),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_pixelwise_operations_give_our_pixels(name: str, pictures) -> None:
    op = OPERATIONS[name]
    most, mean, tight = BOUNDS[name]
    for kind, images in pictures.items():
        if name == "channel_shift" and kind == "digits":
            continue  # see the test below
        for share in STEPS if op.hard else (0.0,):
            for sign in (1, -1) if op.signed else (1,):
                magnitude = sign * share * (op.hard or 0.0)
                bytes_off, floats_off = off(name, magnitude, images), off(name, magnitude, images / 255)
                assert bytes_off.abs().max() <= most, (kind, magnitude)
                assert bytes_off.abs().mean() <= mean, (kind, magnitude)
                assert floats_off.abs().max() <= tight, (kind, magnitude)


def test_a_third_of_the_shifts_reach_an_image_of_one_channel() -> None:
    assert "a third" in DIFFERENT["channel_shift"]
    gray = np.full((4, 5, 1), 100, np.uint8)
    for u, expected in ((0.1, 151), (0.5, 100), (0.9, 100)):
        assert (replayed({"channel_shift": (0.2, u)})(image=gray)["image"] == expected).all()


@pytest.mark.parametrize("fill", ["zero", "reflect"])
@pytest.mark.parametrize("name", WARPS)
def test_warps_give_our_pixels(name: str, fill: str, pictures) -> None:
    """Everywhere, the border too; translations at whole numbers of pixels."""
    for kind, images in pictures.items():
        for share in STEPS:
            for sign in (1, -1):
                magnitude = sign * share * OPERATIONS[name].hard
                if name.startswith("translate"):
                    side = images.shape[3 if name == "translate_x" else 2]
                    magnitude = sign * min(1.0, (int(share * side) + 1e-6) / side)
                    assert int(abs(magnitude) * side) == int(share * side)
                assert off(name, magnitude, images, fill).abs().max() <= 0.6, (kind, magnitude)
                assert off(name, magnitude, images / 255, fill).abs().max() <= 0.05, (kind, magnitude)


def means(name: str, images: Tensor, fill: str = "zero") -> tuple[float, float]:
    """Greatest mean difference over magnitudes and signs, for uint8 and for float32, in [0, 1]."""
    op = OPERATIONS[name]
    signs = (1, -1) if op.signed else (1,)
    magnitudes = [sign * share * (op.hard or 0.0) for share in (STEPS if op.hard else (0.0,)) for sign in signs]
    return tuple(
        max(float(off(name, magnitude, x, fill).abs().mean()) / 255 for magnitude in magnitudes)
        for x in (images, images / 255)
    )  # type: ignore[return-value]


# What `DIFFERENT` says, as measured: mean difference in [0, 1], for uint8 and float32 alike.
APART = {
    "autocontrast": {"photos": 0.011, "sheets": 0.002, "digits": 0.003, "drawings": 0.003},
    "equalize": {"photos": 0.055, "sheets": 0.03, "digits": 0.07, "drawings": 0.17},
    "sharpness": {"photos": 0.003, "sheets": 0.0045, "digits": 0.007, "drawings": 0.008},
}


@pytest.mark.parametrize("name", APART)
def test_what_differs_differs_by_as_much_as_is_said(name: str, pictures) -> None:
    assert name in DIFFERENT
    larger = torch.nn.functional.interpolate(pictures["digits"] / 255, size=(28, 28), mode="bilinear")
    drawings = (255 / 0.55 * (larger - 0.45).clamp(min=0)).round().to(torch.uint8)  # two thirds of it black
    for kind, images in {**pictures, "drawings": drawings}.items():
        for mean in means(name, images):
            assert mean <= APART[name][kind], kind


def test_translations_stop_at_the_whole_pixel_before(pictures) -> None:
    for name, side in (("translate_x", 32), ("translate_y", 32)):
        for sign in (1, -1):
            whole = replayed({name: (sign * 5 / side, 0.0)})
            between = replayed({name: (sign * 5.9 / side, 0.0)})
            for image in pictures["photos"]:
                x = numpy_image(image)
                assert np.array_equal(between(image=x)["image"], whole(image=x)["image"])
        assert max(means(name, pictures["photos"])) <= 0.025


@pytest.mark.parametrize("name", WARPS)
def test_the_mirror_stands_in_for_the_mean(name: str, pictures) -> None:
    spec = policy_of(ranges(), fill="mean")
    assert "not its mean" in differing_operations(spec, "albumentations")[name]
    assert "not its mean" not in differing_operations(policy_of(ranges()), "albumentations")[name]
    x, mirrored, zeros = pictures["photos"], 0.0, 0.0
    for magnitude in (OPERATIONS[name].limit, -OPERATIONS[name].limit):
        mirrored += float(off(name, magnitude, x, "mean").abs().mean()) / 255 / 2
        ours = apply(one(name, magnitude, len(x), "mean"), x).images
        zeros += float((apply(one(name, magnitude, len(x)), x).images - ours).abs().mean()) / 2
    assert mirrored <= 0.035 and mirrored <= zeros / 3


def test_noise_has_our_spread() -> None:
    """On a gray of 128/255, far enough from both ends for these magnitudes."""
    for magnitude in (0.02, 0.05, 0.1):
        policy = replayed({"noise": (magnitude, 0.0)})
        policy.set_random_seed(1)
        floats = policy(image=np.full((300, 300, 3), 0.5, np.float32))["image"] - 0.5
        assert abs(floats.std() - magnitude) <= 0.01 * magnitude
        assert abs(floats.mean()) <= 5 * magnitude / np.sqrt(floats.size)
        assert np.abs(np.corrcoef(floats.reshape(-1, 3).T) - np.eye(3)).max() <= 0.02
        integers = policy(image=np.full((300, 300, 3), 128, np.uint8))["image"] / 255 - 128 / 255
        assert -0.002 <= integers.std() - magnitude <= 0


def test_a_whole_policy_gives_our_pixels_but_for_what_is_said(pictures) -> None:
    """200 of our draws, carried out by both on photographs; measured, in [0, 1]."""
    policy = Policy(EXPORTED, 5, probability=0.7)
    draw = policy.draw(200, generator("albumentations whole"))
    images = pictures["photos"].repeat(17, 1, 1, 1)[:200]
    ours = apply(draw, images).images
    same = {name for name in EXPORTED if name not in APART and not name.startswith("translate")}
    for kind, x in (("uint8", images), ("float32", images / 255)):
        apart: dict[bool, list[float]] = {True: [], False: []}
        for i, image in enumerate(x):
            picked = [(draw.operations[o], slot) for slot, o in enumerate(draw.chosen[i]) if draw.gates[i, slot]]
            decided = {
                name: (float(draw.magnitudes[i, slot]), float(draw.uniforms[i, slot, 1])) for name, slot in picked
            }
            y = numpy_image(image)
            if decided:
                transform = replayed(decided)
                for leaf in transform[0].transforms:
                    if isinstance(leaf, A.GaussNoise):
                        field = normal_field(draw.seeds[i : i + 1], image.numel()).view(image.shape).movedim(0, -1)
                        field = field.numpy() * decided["noise"][0] * (255 if kind == "uint8" else 1)
                        leaf.get_params_dependent_on_data = lambda params, data, field=field: {"noise_map": field}
                y = transform(image=y)["image"]
            apart[set(decided) <= same].append(float((tensor_image(y) - ours[i]).abs().mean()))
        assert min(map(len, apart.values())) > 50
        assert np.mean(apart[True]) <= (0.005 if kind == "uint8" else 0.003)
        assert np.median(apart[True]) <= (0.003 if kind == "uint8" else 1e-5)
        assert np.mean(apart[False]) <= 0.04  # translations by whole pixels, equalize, sharpness, autocontrast


# The dict


def test_the_dict_is_what_albumentations_serialises_itself() -> None:
    for fill in ("zero", "mean", "reflect"):
        data = exported(policy_of(ranges(), 3, fill))
        assert json.loads(json.dumps(A.to_dict(load(data)))) == data
    assert data["__version__"] == VERSION == A.__version__


def test_the_dict_is_that_of_the_transforms_one_would_write() -> None:
    quarter = Setting(probability=0.25, low=10.0, high=20.0)
    spec = policy_of({"rotate": quarter, "invert": Setting(probability=0.5), "erase": exactly("erase", 0.5)}, 2)
    turns = [A.Affine(rotate=(-20, -10), p=0.5), A.Affine(rotate=(10, 20), p=0.5)]
    some = A.SomeOf([A.OneOf(turns, p=0.25), A.InvertImg(p=0.5), A.NoOp(p=1)], n=2, replace=False, p=1)
    assert json.loads(json.dumps(A.to_dict(A.Compose([some], p=1)))) == exported(spec)


def test_the_loader_of_these_tests_refuses_what_albumentations_does_not_know() -> None:
    data = exported(policy_of({"solarize": exactly("solarize", 0.5)}))
    (place,) = places(data)
    place["threshold"] = place.pop("threshold_range")
    with pytest.raises(UserWarning, match="not valid"):
        load(data)


@pytest.mark.parametrize("end", ["nothing", "everything"])
def test_ranges_at_their_ends_are_read(end: str) -> None:
    settings = {
        name: Setting(probability=1.0, low=op.hard and (0.0 if end == "nothing" else op.hard), high=op.hard)
        for name, op in OPERATIONS.items()
    }
    if end == "nothing":
        settings = {name: s.model_copy(update={"high": s.low}) for name, s in settings.items()}
    policy = load(exported(policy_of(settings, len(settings))))
    for shape in ((20, 30, 3), (20, 30, 1), (20, 30)):
        for image in (np.full(shape, 100, np.uint8), np.full(shape, 0.4, np.float32)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                out = policy(image=image)["image"]
            assert out.shape == image.shape and out.dtype == image.dtype
            assert np.isfinite(out).all()


# The draw


class Recorder:
    """Takes the place of an operation's pixels: notes which operation it was and the numbers it got."""

    def __init__(self, name: str, transform: A.BasicTransform, found: list[tuple[str, A.BasicTransform, Json]]) -> None:
        self.name, self.transform, self.found = name, transform, found

    def __call__(self, image: np.ndarray, **params: Any) -> np.ndarray:
        self.found.append((self.name, self.transform, params))
        return image


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch):
    """What an exported policy decides for each of `size` images of 2000 x 2000 pixels."""
    generate = pixel_functions.generate_noise

    def spread_alone(noise_type: str, *args: Any, **kwargs: Any) -> Any:
        return kwargs["params"]["std_range"][0] if noise_type == "gaussian" else generate(noise_type, *args, **kwargs)

    monkeypatch.setattr(pixel_functions, "generate_noise", spread_alone)
    return decisions


def decisions(spec: PolicySpec, size: int, seed: int) -> list[list[tuple[str, A.BasicTransform, Json]]]:
    policy = load(exported(spec))
    policy.set_random_seed(seed)
    found: list[tuple[str, A.BasicTransform, Json]] = []
    for name, place in zip(spec.operations, policy[0].transforms, strict=True):
        for leaf in getattr(place, "transforms", None) if isinstance(place, A.OneOf) else [place]:
            if not isinstance(leaf, A.NoOp):
                leaf._key2func = {"image": Recorder(name, leaf, found)}
    image, out = np.zeros((2000, 2000, 3), np.uint8), []
    for _ in range(size):
        found.clear()
        policy(image=image)
        out.append(list(found))
    return out


def sigma(kernel: np.ndarray) -> float:
    middle = len(kernel) // 2
    return 1 / np.sqrt(2 * np.log(kernel[middle] / kernel[middle + 1]))


READ: dict[str, Callable[[A.BasicTransform, Json], float]] = {
    "scale": lambda t, p: p["scale"]["x"] - 1,
    "shear_x": lambda t, p: -np.arctan(p["matrix"][0, 1]),
    "shear_y": lambda t, p: -np.arctan(p["matrix"][1, 0]),
    "rotate": lambda t, p: -p["rotate"],
    "translate_x": lambda t, p: p["matrix"][0, 2] / 2000,
    "translate_y": lambda t, p: p["matrix"][1, 2] / 2000,
    "brightness": lambda t, p: p["brightness"] - 1,
    "contrast": lambda t, p: p["contrast"] - 1,
    "saturation": lambda t, p: p["saturation"] - 1,
    "channel_shift": lambda t, p: p["noise_map"].sum() / 255,
    "hue": lambda t, p: p["hue"],
    "gamma": lambda t, p: p["gamma"] - 1,
    "solarize": lambda t, p: 1 - p["threshold"],
    "sharpness": lambda t, p: 13 * p["alpha"] if isinstance(t, A.Sharpen) else -sigma(p["kernel"]),
    "gaussian_blur": lambda t, p: sigma(p["kernel"]),
    "noise": lambda t, p: p["noise_map"],
    "posterize": lambda t, p: 8 - p["num_bits"],
}
WHOLE = ("posterize",)


def uniform_on(name: str, negative: bool, setting: Setting) -> tuple[float, float]:
    """What is uniform between which ends: the magnitude but for shear and for softening, as `DIFFERENT` says."""
    ends = np.array([setting.low, setting.high])
    if name.startswith("shear"):
        ends = np.arctan(ends)
    if name == "sharpness" and negative:
        side = 3 * ends / 13
        ends = 1 / np.sqrt(-2 * np.log(side / (1 - 2 * side)))
    return float(ends[0]), float(ends[1])


def test_the_exported_draw_has_the_rates_signs_and_ranges_of_the_policy(recorded) -> None:
    size, n = 10_000, 10
    settings = {
        name: s.model_copy(
            update={"probability": 0.0 if name in ("rotate", "noise") else (8 + i) / (7 + len(OPERATIONS))}
        )
        for i, (name, s) in enumerate(ranges().items())
    }
    p_values: list[float] = []
    counts, signs = [], np.zeros(2, int)
    others = policy_of({name: ranges()[name] for name in ("rotate", "noise")})
    for spec, names in ((policy_of(settings, n), EXPORTED), (others, ["rotate", "noise"])):
        draws = recorded(spec, size, 3)
        assert max(len({name for name, _, _ in row}) for row in draws) <= spec.operations_per_image
        order = {name: i for i, name in enumerate(OPERATIONS)}
        assert all([order[name] for name, _, _ in row] == sorted(order[name] for name, _, _ in row) for row in draws)
        for name in names:
            found = [(t, p) for row in draws for got, t, p in row if got == name]
            counts.append(len(found))
            p_values.append(binomtest(len(found), size, spec.rate(name)).pvalue)
            p_values += magnitude_p_values(name, found, spec.final[name])
            if OPERATIONS[name].signed:
                values = np.array([READ[name](*each) for each in found])
                signs += [(values < 0).sum(), (values > 0).sum()]
    p_values.append(binomtest(int(signs[0]), int(signs.sum()), 0.5).pvalue)
    assert sum(counts) > 50_000
    assert min(p_values) > 1e-3 / len(p_values)


def magnitude_p_values(name: str, found: list[tuple[A.BasicTransform, Json]], setting: Setting) -> list[float]:
    """Of the hypotheses that signs, magnitudes and channels are drawn as the policy says."""
    if name not in READ or name in WHOLE or not found or setting.low == setting.high:
        return []
    values = np.array([READ[name](*each) for each in found])
    out = []
    for negative in (False, True) if OPERATIONS[name].signed else (False,):
        some = np.abs(values[(values < 0) == negative])
        low, high = uniform_on(name, negative, setting)
        slack = 1 / 2000 + 1e-6 if name.startswith("translate") else 1e-6
        assert low - slack <= some.min() and some.max() <= high * (1 + 1e-6)
        out.append(kstest(some, "uniform", args=(low, high - low)).pvalue)
        out.append(binomtest(len(some), len(values), 0.5 if OPERATIONS[name].signed else 1.0).pvalue)
    if name == "channel_shift":
        channels = np.array([np.flatnonzero(p["noise_map"])[0] for _, p in found])
        out += [binomtest(int((channels == c).sum()), len(channels), 1 / 3).pvalue for c in range(3)]
    return out


def test_a_shear_is_close_to_uniform_in_its_slope() -> None:
    """The distance of the two distributions, at the limit search spaces start from and at the hard one."""
    for name in ("shear_x", "shear_y"):
        op = OPERATIONS[name]
        for limit, most in ((op.limit, 0.012), (op.hard, 0.1)):
            slope = np.linspace(0, limit, 1001)
            assert np.abs(np.arctan(slope) / np.arctan(limit) - slope / limit).max() <= most


@pytest.mark.parametrize(("low", "high"), [(0.0, 4.0), (0.3, 0.4), (0.5, 2.5), (1.2, 3.9), (1.5, 1.5), (6.6, 7.0)])
def test_bits_are_dropped_as_often_as_our_magnitudes_round_to_them(low: float, high: float) -> None:
    (place,) = places(exported(policy_of({"posterize": Setting(probability=0.5, low=low, high=high)})))
    options = place["transforms"] if place["__class_fullname__"] == "OneOf" else [{**place, "p": 1.0}]
    shares = {8 - t["num_bits"][0] if "num_bits" in t else 0: t["p"] for t in options}
    magnitudes = torch.linspace(low, high, 200_001, dtype=torch.float64)
    dropped = magnitudes.round().long().bincount(minlength=8) / len(magnitudes)
    for bits in range(8):
        assert shares.get(bits, 0.0) == pytest.approx(float(dropped[bits]), abs=1e-4)
    assert place["p"] == 0.5


def test_what_is_left_out_or_never_happens_keeps_its_place() -> None:
    settings = {**ranges(), "rotate": Setting(probability=0.0, low=1.0, high=9.0)}
    spec = policy_of(settings, 3)
    kinds = {name: place["__class_fullname__"] for name, place in zip(settings, places(exported(spec)), strict=True)}
    assert {name for name, kind in kinds.items() if kind == "NoOp"} == {"rotate", *LEFT_OUT}
    assert exported(spec)["transform"]["transforms"][0]["n"] == 3


def test_the_average_is_exported_too() -> None:
    moments = [Snapshot(progress=p, settings={"invert": Setting(probability=q)}) for p, q in ((0.5, 0.2), (1.0, 0.6))]
    spec = policy_of({"invert": Setting(probability=1.0)}).model_copy(update={"schedule": tuple(moments)})
    (place,) = places(json.loads(export(spec, "albumentations", "average")))
    assert place == {"__class_fullname__": "InvertImg", "p": pytest.approx(0.4)}


# What is said of it


def test_what_is_left_out_and_what_differs_is_said_of_what_can_happen_alone() -> None:
    settings = {**ranges(), "erase": Setting(probability=0.0, low=0.1, high=0.2)}
    settings["hue"] = Setting(probability=0.0, low=0.1, high=0.2)
    spec = policy_of(settings)
    assert set(omitted_operations(spec, "albumentations")) == {"perspective"} == set(LEFT_OUT) - {"erase"}
    assert set(differing_operations(spec, "albumentations")) == set(DIFFERENT) - {"hue"}
    for to in ("json", "kornia", "torchvision"):
        assert omitted_operations(spec, to) == differing_operations(spec, to) == {}
    for function in (omitted_operations, differing_operations):
        with pytest.raises(KdsearchError, match="did you mean 'albumentations'"):
            function(spec, "albumentation")
        with pytest.raises(KdsearchError, match="unknown part of a policy 'last'"):
            function(spec, "albumentations", "last")


def test_every_operation_is_either_exported_or_left_out_with_a_reason() -> None:
    for name, op in OPERATIONS.items():
        spec = policy_of({"horizontal_flip": exactly("horizontal_flip"), name: exactly(name, op.hard and op.hard / 5)})
        place = places(exported(spec))[-1]
        assert (place["__class_fullname__"] == "NoOp") == (name in LEFT_OUT), name
    assert not set(LEFT_OUT) & set(DIFFERENT)


def test_a_policy_of_which_nothing_is_left_is_refused() -> None:
    names = list(LEFT_OUT)
    with pytest.raises(KdsearchError, match=f"can do nothing of what this policy does: {', '.join(names)}"):
        export(policy_of({name: exactly(name, 0.1) for name in reversed(names)}), "albumentations")
    never = policy_of({name: Setting(probability=0.0, low=0.1, high=0.1) for name in names})
    image = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    assert np.array_equal(load(exported(never))(image=image)["image"], image)


def test_the_command_says_what_is_lost_on_standard_error(tmp_path: Path) -> None:
    spec = policy_of(
        {"perspective": exactly("perspective", 0.1), "hue": exactly("hue", 0.1), "invert": exactly("invert")}
    )
    (tmp_path / "policy.json").write_text(spec.to_json(), encoding="utf-8")
    command = [sys.executable, "-m", "kdsearch", "export", "policy.json", "--to", "albumentations"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == exported(spec)
    assert done.stderr.splitlines() == [
        f"left out: perspective (rate 33.3 %): {LEFT_OUT['perspective']}",
        f"differs: hue (rate 33.3 %): {DIFFERENT['hue']}",
    ]


def test_a_stranger_s_provenance_stays_out_of_the_dict() -> None:
    spec = policy_of({"invert": exactly("invert")})
    assert export(spec.model_copy(update={"provenance": {"x": "y"}}), "albumentations") == export(
        spec, "albumentations"
    )


ALONE = """
import json, warnings
import albumentations as A
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

warnings.simplefilter("error")
policy = A.from_dict(json.load(open("policy.json")))


def seed(worker):
    policy.set_random_seed(torch.initial_seed() % 2**32)


class Data(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
        return torch.from_numpy(policy(image=np.asarray(picture))["image"]).permute(2, 0, 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loader = DataLoader(Data(), batch_size=8, num_workers=2, worker_init_fn=seed)
    batches = list(loader)
    assert [batch.shape for batch in batches] == [(8, 3, 16, 24)] * 8
    assert len({tuple(image.flatten().tolist()) for batch in batches for image in batch}) > 50
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(batches, loader))
"""


def test_the_file_runs_in_a_data_loader_s_workers_without_kdsearch(tmp_path: Path, without_kdsearch: str) -> None:
    spec = policy_of(ranges(probability=0.9), 5)
    (tmp_path / "policy.json").write_text(export(spec, "albumentations"), encoding="utf-8")
    (tmp_path / "main.py").write_text(without_kdsearch + ALONE, encoding="utf-8")
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_exporting_does_not_import_albumentations() -> None:
    code = "import kdsearch.augment.export, sys; raise SystemExit('albumentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
