"""Export as a transform for torchvision: one Python file, called on one image in a data loader's workers.

Torchvision's functions are used where they mean what ours do; where not, plain torch. Its brightness, contrast and
saturation clamp one by one. Its affine weighs a filled border twice, knows no mirrored one and cannot be one warp with
a perspective.
"""

from string import Template

from kdsearch.augment.export.source import (
    class_words,
    file_header,
    geometry_functions,
    instances,
    needed_fills,
    needed_operations,
    pixel_functions,
    uniform_counts,
)
from kdsearch.augment.operations import LINEAR
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import PolicySpec

_TITLE = "An augmentation policy for torchvision, found by kdsearch. It needs torch and torchvision, not kdsearch."
_USAGE = """Use, among the transforms of a data set and before any normalisation, with this file's name:

    from policy import policy
    from torchvision.transforms import v2
    transform = v2.Compose([policy, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])"""
_USAGE_OF_BOTH = """Use, in a data set and before any normalisation, with this file's name:

    from policy import base, policy
    view = base(image)  # of the same kind as the image
    second = policy(view)"""

_IMPORTS = {
    "torch.": "import torch",
    "nn.": "from torch import nn",
    "tv_tensors.": "from torchvision import tv_tensors",
    "F.": "from torchvision.transforms.v2 import functional as F",
}

_FUNCTIONS = {
    "luma": '''
def luma(x):
    """Gray values: ITU-R 601 of RGB, the mean of other channels."""
    return F.rgb_to_grayscale(x) if x.shape[-3] == 3 else x.mean(-3, keepdim=True)
''',
    "hue": """
def hue(x, m, u):
    return F.adjust_hue(x, hue_factor=m) if x.shape[-3] == 3 else x
""",
    "gamma": """
def gamma(x, m, u):
    return F.adjust_gamma(x, gamma=1 + m)
""",
    "autocontrast": '''
def autocontrast(x, m, u):
    """Channels one by one, because torchvision takes no more than 1 or 3."""
    return F.autocontrast(x[:, None])[:, 0]
''',
    "equalize": """
def equalize(x, m, u):
    return F.equalize(x)
""",
    "solarize": """
def solarize(x, m, u):
    return F.solarize(x, threshold=1 - m)
""",
    "posterize": """
def posterize(x, m, u):
    return F.posterize(x, bits=8 - round(m))
""",
    "invert": """
def invert(x, m, u):
    return F.invert(x)
""",
    "sharpness": '''
def sharpness(x, m, u):
    """Channels one by one, because torchvision takes no more than 1 or 3."""
    return F.adjust_sharpness(x[:, None], sharpness_factor=1 + m)[:, 0]
''',
    "gaussian_blur": '''
def gaussian_blur(x, m, u):
    """Over 9 pixels to each side, fewer in an image that has fewer to mirror; a deviation of 1e-3 changes nothing."""
    height, width = x.shape[-2:]
    return F.gaussian_blur(x, kernel_size=[min(19, 2 * width - 1), min(19, 2 * height - 1)], sigma=max(m, 1e-3))
''',
}

_WARP = Template('''

def warp(image, decided$fill):
    """Geometry: the maps of what was drawn multiplied into one, in the order of the table, and one warp."""
    height, width = image.shape[-2:]
    matrix = torch.eye(3, dtype=torch.float64)
    for name, function in GEOMETRY.items():
        if name in decided:
            m, u = decided[name]
            step = torch.eye(3, dtype=torch.float64)
            function(step, torch.tensor(m, dtype=torch.float64), u, height, width)
            matrix = step @ matrix
    y = torch.arange(height, dtype=image.dtype)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=image.dtype) - (width - 1) / 2
    # Where each pixel comes from, in halves of the sides, which is how grid_sample counts.
    halves = torch.tensor([[2 / width], [2 / height], [1.0]], dtype=torch.float64)
    $sources
    grid = torch.stack($grid, 2)[None]$sampling''')
_AFFINE = {
    "sources": "from_x, from_y = (a * x + c + b * y for a, b, c in (halves * matrix.inverse()).to(image.dtype)[:2])",
    "grid": "[from_x, from_y]",
}
_PERSPECTIVE = {
    "sources": "from_x, from_y, depth = (a * x + c + b * y for a, b, c in (halves * matrix.inverse()).to(image.dtype))",
    "grid": "[from_x / depth, from_y / depth]",
}
_SAMPLING = {
    "zero": """
    return nn.functional.grid_sample(image[None], grid, padding_mode="zeros", align_corners=False)[0]
""",
    "mean": """
    mean = image.mean((1, 2), keepdim=True)  # around image - mean zeros stand for the mean
    moved = nn.functional.grid_sample((image - mean)[None], grid, padding_mode="zeros", align_corners=False)[0]
    return (moved + mean).clamp(0, 1)  # rounding may leave it
""",
    "reflect": """
    return nn.functional.grid_sample(image[None], grid, padding_mode="reflection", align_corners=False)[0]
""",
}

_TWO_FILLS = """
    padding = "reflection" if fill == "reflect" else "zeros"
    return nn.functional.grid_sample(image[None], grid, padding_mode=padding, align_corners=False)[0]
"""
_TWO_FILLS_ONE_THE_MEAN = """
    mean = image.mean((1, 2), keepdim=True) if fill == "mean" else 0  # around image - mean zeros stand for the mean
    padding = "reflection" if fill == "reflect" else "zeros"
    moved = nn.functional.grid_sample((image - mean)[None], grid, padding_mode=padding, align_corners=False)[0]
    return (moved + mean).clamp(0, 1)  # rounding may leave it
"""

_CLASS = Template('''

class Policy(nn.Module):
    """Augments one image: PIL (L or RGB), uint8 or float in [0, 1] of shape (C, H, W); returns the same kind."""
$head
    def forward(self, *images):
        if len(images) != 1:
            raise TypeError(f"needs one image, which nothing else moves with, got {len(images)} inputs")
        image = images[0]
        annotation = isinstance(image, tv_tensors.TVTensor) and not isinstance(image, tv_tensors.Image)
        if annotation or not (isinstance(image, torch.Tensor) or hasattr(image, "mode")):
            raise TypeError(f"needs an image, PIL or a tensor (C, H, W), got {type(image).__name__}")
        if not self.training:
            return image
        if not isinstance(image, torch.Tensor):
            if image.mode not in ("L", "RGB"):
                raise TypeError(f'a PIL image of mode {image.mode}; convert it first: image.convert("RGB")')
            return F.to_pil_image(self(F.pil_to_tensor(image)), mode=image.mode)
        if image.ndim != 3 or not (image.is_floating_point() or image.dtype == torch.uint8):
            raise TypeError(f"needs one uint8 or float image (C, H, W), got {image.dtype} {tuple(image.shape)}")
        if image.is_floating_point() and image.numel() and not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"image values from {image.min():g} to {image.max():g}; allowed: floats in [0, 1]")
        pixels = image.as_subclass(torch.Tensor)
        if image.dtype == torch.uint8:
            out = (self.apply(pixels / 255, self.draw()) * 255).round().to(torch.uint8)
        else:
            out = self.apply(pixels.float(), self.draw()).to(image.dtype)
        return tv_tensors.wrap(out, like=image)

    def draw(self):
        """What happens to one image: a list of (name, magnitude, random numbers that the operation needs beside)."""
        names, decisions = list($operations), []
        for i in sorted(torch.randperm(len(names))$first.tolist()):
            name = names[i]
            probability, low, high, signed = $operations[name]
            gate, place, sign, *u = torch.rand($count, dtype=torch.float64).tolist()
            if gate < probability:
                magnitude = low + (high - low) * place
                decisions.append((name, -magnitude if signed and sign < 0.5 else magnitude, u))
        return decisions

    def apply(self, image, decisions):
        """The image, float in [0, 1] of shape (C, H, W), after `decisions` such as `draw` makes."""
''')
_WARP_LINES = Template("""        if any(name in decided for name in GEOMETRY):
            image = warp(image, decided$fill)
""")
_LINEAR_LINES = """        if any(name in decided for name in LINEAR):
            for name, function in LINEAR.items():
                image = function(image, *decided[name]) if name in decided else image
            image = image.clamp(0, 1)
"""
_PIXELS_LINES = """        for name, function in PIXELS.items():
            image = function(image, *decided[name]) if name in decided else image
"""


def source(spec: PolicySpec, which: str) -> str:
    """The text of a file that defines `policy`, an `nn.Module`, and `base`, another, where there is a base view."""
    names, fills, words = needed_operations(spec, which), needed_fills(spec, which), class_words(spec, which)
    table, count = uniform_counts(names, 3)
    steps = ""
    if names:
        steps += "        decided = {name: (magnitude, u) for name, magnitude, u in decisions}\n"
    if any(OPERATIONS[name].matrix for name in names):
        steps += _WARP_LINES.substitute(words)
    if any(name in LINEAR for name in names):
        steps += _LINEAR_LINES
    if any(OPERATIONS[name].pixels for name in names):
        steps += _PIXELS_LINES
    warp = _WARP.substitute(
        _PERSPECTIVE if "perspective" in names else _AFFINE,
        sampling=_SAMPLING.get("".join(fills)) or (_TWO_FILLS_ONE_THE_MEAN if "mean" in fills else _TWO_FILLS),
        fill=", fill" * (len(fills) - 1),
    )
    body = table + geometry_functions(names, warp) + pixel_functions(names, _FUNCTIONS)
    body += _CLASS.substitute(words, count=count) + steps + "        return image\n" + instances(spec, which)
    usage = _USAGE_OF_BOTH if spec.base else _USAGE
    return file_header(spec, which, title=_TITLE, usage=usage, imports=_IMPORTS, body=body) + body
