"""Export for albumentations 2.0.8, as the JSON text of what its `to_dict` gives and its `from_dict` reads."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from kdsearch.augment.export.source import applied_operations
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import PolicySpec
from kdsearch.core.errors import KdsearchError

VERSION = "2.0.8"

Transform = dict[str, Any]
Options = list[tuple[float, Transform]]  # transforms of which one is applied, with their probabilities

LEFT_OUT: Mapping[str, str] = {
    "perspective": "A.Perspective moves corners by normal numbers and zooms into the picture",
    "erase": "A.CoarseDropout draws height and width apart and keeps the hole inside the picture",
}

_WARP = "a warp of its own: drawn together with others, pixels are interpolated more than once"
_SLOPE = "uniform in the angle, not in the slope; " + _WARP
_WHOLE = "moves by whole pixels, cut off towards 0"
_DOWN = "clamped by itself; uint8 values are rounded down, by up to 1/255"

DIFFERENT: Mapping[str, str] = {
    "scale": _WARP,
    "shear_x": _SLOPE,
    "shear_y": _SLOPE,
    "rotate": _WARP,
    "translate_x": _WHOLE,
    "translate_y": _WHOLE,
    "brightness": _DOWN,
    "contrast": _DOWN,
    "saturation": "clamped by itself",
    "channel_shift": _DOWN + "; images of one channel are shifted in a third of the cases",
    "hue": "uint8 images have 180 hues: up to 12/255 off, less than 1/255 on average",
    "gamma": "uint8 values are rounded down, by up to 1/255",
    "autocontrast": "values of 255 are not looked for: mean difference .002 on photographs, .01 on small crops; "
    "float images get 256 levels",
    "equalize": "OpenCV's rule, not PIL's: mean difference .02 on photographs, .05 on small crops, .17 on "
    "drawings on black; float images get 256 levels",
    "posterize": "levels are multiples of 1/255, not of 1/256",
    "sharpness": "changes the border row of pixels too; softening is a 3x3 Gaussian blur of the same variance, uniform "
    "in its standard deviation: mean difference up to .007",
    "noise": "uint8 noise is cut off towards 0: its standard deviation is .002 smaller",
}

_MEAN = "where no pixel comes from stands the mirrored image, not its mean"

_BORDERS = {"zero": 0, "mean": 2, "reflect": 2}  # OpenCV's numbers; 2 mirrors at the edge, the edge repeated
_STILL = {"x": [0.0, 0.0], "y": [0.0, 0.0]}
_SAME_SIZE = {"x": [1.0, 1.0], "y": [1.0, 1.0]}
_KERNEL = [19, 19]  # pixels, this library's blur

# Every argument is written out: albumentations has defaults of its own for what is missing.


def _transform(name: str, **arguments: Any) -> Transform:
    return {"__class_fullname__": name, "p": 1.0, **arguments}


def _signed(low: float, high: float) -> list[list[float]]:
    """The ranges of the positive and of the negative magnitudes, each as likely."""
    return [[low, high], [-high, -low]]


def _around(centre: float, low: float, high: float, unit: float = 1.0) -> list[list[float]]:
    return [[unit * (centre + end) for end in ends] for ends in _signed(low, high)]


def _equally(transforms: list[Transform]) -> Options:
    return [(1 / len(transforms), transform) for transform in transforms]


def _plain(name: str, **arguments: Any) -> Callable[[float, float], Options]:
    """An operation without a magnitude."""
    return lambda low, high: [(1.0, _transform(name, **arguments))]


def _affine(**moves: Any) -> Transform:
    still = {
        "scale": _SAME_SIZE,
        "translate_percent": None,
        "translate_px": {"x": [0, 0], "y": [0, 0]},
        "rotate": [0.0, 0.0],
        "shear": _STILL,
        "interpolation": 1,  # bilinear
        "mask_interpolation": 0,
        "fit_output": False,
        "keep_ratio": "scale" in moves,
        "rotate_method": "largest_box",
        "balanced_scale": False,
        "border_mode": _BORDERS["zero"],
        "fill": 0.0,
        "fill_mask": 0.0,
    }
    return _transform("Affine", **{**still, **moves})


def _scale(low: float, high: float) -> Options:
    return _equally([_affine(scale={"x": ends, "y": ends}) for ends in _around(1.0, low, high)])


def _shear(axis: str) -> Callable[[float, float], Options]:
    def options(low: float, high: float) -> Options:
        angles = _signed(*(math.degrees(math.atan(slope)) for slope in (low, high)))
        return _equally([_affine(shear={**_STILL, axis: ends}) for ends in angles])

    return options


def _rotate(low: float, high: float) -> Options:
    # albumentations turns anticlockwise.
    return _equally([_affine(rotate=ends) for ends in reversed(_signed(low, high))])


def _translate(axis: str) -> Callable[[float, float], Options]:
    return lambda low, high: _equally(
        [_affine(translate_percent={**_STILL, axis: ends}, translate_px=None) for ends in _signed(low, high)]
    )


def _jitter(factor: str, centre: float = 1.0) -> Callable[[float, float], Options]:
    """One factor of ColorJitter, the others at the identity, so that its order of them does not matter."""
    identity = {"brightness": [1.0, 1.0], "contrast": [1.0, 1.0], "saturation": [1.0, 1.0], "hue": [0.0, 0.0]}
    return lambda low, high: _equally(
        [_transform("ColorJitter", **{**identity, factor: ends}) for ends in _around(centre, low, high)]
    )


def _channel_shift(low: float, high: float) -> Options:
    # What RGBShift is made of: from_dict cannot read RGBShift's own dict without a warning.
    def shift(channel: int, ends: list[float]) -> Transform:
        ranges = [ends if i == channel else [0.0, 0.0] for i in range(3)]
        return _transform(
            "AdditiveNoise",
            noise_type="uniform",
            spatial_mode="constant",
            noise_params={"noise_type": "uniform", "ranges": ranges},
            approximation=1.0,
        )

    return _equally([shift(channel, ends) for channel in range(3) for ends in _signed(low, high)])


def _gamma(low: float, high: float) -> Options:
    return _equally([_transform("RandomGamma", gamma_limit=ends) for ends in _around(1.0, low, high, 100.0)])


def _solarize(low: float, high: float) -> Options:
    return [(1.0, _transform("Solarize", threshold_range=[1 - high, 1 - low]))]


def _posterize(low: float, high: float) -> Options:
    """By the bits dropped: how much of the range is rounded to each number of them."""
    options = []
    for bits in range(round(low), round(high) + 1):
        share = (min(high, bits + 0.5) - max(low, bits - 0.5)) / (high - low) if high > low else 1.0
        if share > 0:
            kept = [8 - bits, 8 - bits]
            options.append((share, _transform("Posterize", num_bits=kept) if bits else _transform("NoOp")))
    return options


def _sharpness(low: float, high: float) -> Options:
    # Its kernel has -alpha around 1 + alpha * (7 + lightness), ours -m/13 around 1 + 8 m/13. It cannot soften.
    fixed = {"lightness": [1.0, 1.0], "method": "kernel", "kernel_size": 5, "sigma": 1.0}
    sharpen = _transform("Sharpen", alpha=[low / 13, high / 13], **fixed)
    soften = _transform("GaussianBlur", blur_limit=[3, 3], sigma_limit=[_softening(low), _softening(high)])
    return _equally([sharpen, soften])


def _softening(m: float) -> float:
    """Standard deviation whose Gaussian weights on 3 pixels have the variance of our kernel along an axis, 6 m/13."""
    side = 3 * max(m, 1e-3) / 13
    return 1 / math.sqrt(-2 * math.log(side / (1 - 2 * side)))


def _gaussian_blur(low: float, high: float) -> Options:
    sigma = [max(low, 1e-3), max(high, 1e-3)]  # its weights are no numbers at 0
    return [(1.0, _transform("GaussianBlur", blur_limit=_KERNEL, sigma_limit=sigma))]


def _noise(low: float, high: float) -> Options:
    fixed = {"mean_range": [0.0, 0.0], "per_channel": True, "noise_scale_factor": 1.0}
    return [(1.0, _transform("GaussNoise", std_range=[low, high], **fixed))]


_OPTIONS: Mapping[str, Callable[[float, float], Options]] = {
    "horizontal_flip": _plain("HorizontalFlip"),
    "vertical_flip": _plain("VerticalFlip"),
    "scale": _scale,
    "shear_x": _shear("x"),
    "shear_y": _shear("y"),
    "rotate": _rotate,
    "translate_x": _translate("x"),
    "translate_y": _translate("y"),
    "brightness": _jitter("brightness"),
    "contrast": _jitter("contrast"),
    "saturation": _jitter("saturation"),
    "gray": _plain("ColorJitter", brightness=[1.0, 1.0], contrast=[1.0, 1.0], saturation=[0.0, 0.0], hue=[0.0, 0.0]),
    "channel_shift": _channel_shift,
    "hue": _jitter("hue", 0.0),
    "gamma": _gamma,
    "autocontrast": _plain("AutoContrast", cutoff=0.0, ignore=None, method="pil"),
    "equalize": _plain("Equalize", mode="cv", by_channels=True, mask=None),
    "solarize": _solarize,
    "posterize": _posterize,
    "invert": _plain("InvertImg"),
    "sharpness": _sharpness,
    "gaussian_blur": _gaussian_blur,
    "noise": _noise,
}


def source(spec: PolicySpec, which: str) -> str:
    """JSON text: `albumentations.from_dict(json.loads(text))` is the policy, for uint8 or float32 RGB or gray images.

    Of the operations, in table order, `SomeOf` applies n. One that cannot be expressed (`LEFT_OUT`) or cannot happen
    keeps its place as a `NoOp`, so that the others are drawn as often as in the policy. Where the policy has a base
    view, that is `albumentations.from_dict(json.loads(text)["base"])`.

    Raises:
        KdsearchError: everything that can happen would be left out, of the policy or of its base view.
    """
    data = _data(spec, which, "this policy")
    if spec.base:
        data["base"] = _data(spec.base, "final", "the base view of this policy")
    return json.dumps(data, indent=1) + "\n"


def _data(spec: PolicySpec, which: str, what: str) -> dict[str, Any]:
    names = applied_operations(spec, which)
    if names and not set(names) - set(LEFT_OUT):
        raise KdsearchError(f"albumentations {VERSION} can do nothing of what {what} does: {', '.join(names)}")
    places = [
        _operation(spec, which, name) if name in names and name not in LEFT_OUT else _transform("NoOp")
        for name in OPERATIONS
        if name in spec.operations
    ]
    some = _transform("SomeOf", transforms=places, n=spec.operations_per_image, replace=False)
    fixed: Transform = {"bbox_params": None, "keypoint_params": None, "additional_targets": {}, "is_check_shapes": True}
    policy = _transform("Compose", transforms=[some], **fixed)
    return {"__version__": VERSION, "transform": policy}


def differences(spec: PolicySpec, which: str) -> dict[str, str]:
    """What is exported but not the same, by operation."""
    found = {}
    for name in applied_operations(spec, which):
        reasons = [DIFFERENT[name]] if name in DIFFERENT else []
        if spec.fill == "mean" and _leaves_gaps(name):
            reasons.append(_MEAN)
        if reasons and name not in LEFT_OUT:
            found[name] = "; ".join(reasons)
    return found


def _operation(spec: PolicySpec, which: str, name: str) -> Transform:
    setting = spec.which(which)[name]
    options = _OPTIONS[name](setting.low or 0.0, setting.high or 0.0)
    if _leaves_gaps(name):
        options = [(share, {**transform, "border_mode": _BORDERS[spec.fill]}) for share, transform in options]
    if len(options) == 1:
        return {**options[0][1], "p": setting.probability}
    # Within OneOf, p is a weight.
    weighted = [{**transform, "p": share} for share, transform in options]
    return {**_transform("OneOf", transforms=weighted), "p": setting.probability}


def _leaves_gaps(name: str) -> bool:
    return OPERATIONS[name].matrix is not None and not name.endswith("_flip")
