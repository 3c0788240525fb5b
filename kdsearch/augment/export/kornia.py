"""Export as a module for kornia: one Python file, called on a batch, each image with a draw of its own.

Kornia's functions are used where they mean what ours do; where not, plain torch. Measured on kornia 0.9: its brightness
adds, its contrast, saturation and channel shift clamp, its nearest to autocontrast makes constant channels black, its
posterize counts levels in 255ths and is up to a whole level off, its equalize bins by floor(255 x) where torchvision
bins by floor(255.999 x).
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

_TITLE = "An augmentation policy for kornia, found by kdsearch. It needs torch and kornia, not kdsearch."
_USAGE = """Use, in the training loop and before any normalisation, with this file's name:

    from policy import policy
    images = policy(images)  # (B, C, H, W), float in [0, 1]"""
_USAGE_OF_BOTH = """Use, in the training loop and before any normalisation, with this file's name:

    from policy import base, policy
    view = base(images)  # (B, C, H, W), float in [0, 1]
    second = policy(view)"""

_IMPORTS = {
    "kornia.": "import kornia",
    "torch.": "import torch",
    "nn.": "from torch import nn",
}

_FUNCTIONS = {
    "luma": '''
def luma(x):
    """Gray values: ITU-R 601 as torchvision rounds it, the mean of the channels where they are not RGB."""
    if x.shape[-3] != 3:
        return x.mean(-3, keepdim=True)
    return kornia.color.rgb_to_grayscale(x, x.new_tensor([0.2989, 0.587, 0.114]))
''',
    "hue": '''
def hue(x, m, u):
    """m of the colour circle; kornia counts in radians."""
    return kornia.enhance.adjust_hue(x, 2 * torch.pi * m.flatten()) if x.shape[-3] == 3 else x
''',
    "gamma": """
def gamma(x, m, u):
    return kornia.enhance.adjust_gamma(x, 1 + m.flatten())
""",
    "autocontrast": '''
def autocontrast(x, m, u):
    """Each channel stretched to [0, 1]; a constant one stays, kornia's normalize_min_max would make it black."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return torch.where(low == high, x, (x - low) / (high - low))
''',
    "equalize": '''
def equalize(x, m, u):
    """On torchvision's 256 levels; kornia's own bins are others, so it is given values just above the levels."""
    return (kornia.enhance.equalize(((x * 255.999).floor() + 1e-3) / 255) * 255).round() / 255
''',
    "solarize": """
def solarize(x, m, u):
    return kornia.enhance.solarize(x, thresholds=1 - m.flatten())
""",
    "posterize": '''
def posterize(x, m, u):
    """m of 8 bits dropped, with torchvision's levels k / 2**bits; kornia's are k * 2**(8 - bits) / 255."""
    levels = 2 ** (8 - m.round())
    return (x * levels).floor().clamp(max=levels - 1) / levels
''',
    "invert": """
def invert(x, m, u):
    return kornia.enhance.invert(x)
""",
    "sharpness": """
def sharpness(x, m, u):
    return kornia.enhance.sharpness(x, 1 + m.flatten()) if min(x.shape[-2:]) >= 3 else x
""",
    "gaussian_blur": '''
def gaussian_blur(x, m, u):
    """Over 9 pixels to each side, fewer in an image that has fewer to mirror; a deviation of 1e-3 changes nothing."""
    sides = [min(19, 2 * side - 1) for side in x.shape[-2:]]
    return kornia.filters.gaussian_blur2d(x, sides, m.view(-1, 1).clamp(min=1e-3).expand(-1, 2))
''',
}

_WARP = Template('''

def warp(images, decisions$fill):
    """Geometry: each image's maps multiplied into one, in the order of the table, and one warp, in place."""
    height, width = images.shape[-2:]
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(images), 1, 1)
    for name, function in GEOMETRY.items():
        if name in decisions:
            rows, m, u = decisions[name]
            step = torch.eye(3, dtype=torch.float64).repeat(len(rows), 1, 1)
            function(step, m, u, height, width)
            matrix[rows] = step @ matrix[rows]
    rows = (matrix != torch.eye(3)).any(2).any(1).nonzero()[:, 0]
    if len(rows):
        centre = torch.eye(3, dtype=torch.float64)
        centre[:2, 2] = torch.tensor([(width - 1) / 2, (height - 1) / 2])
        matrix = (centre @ matrix[rows] @ centre.inverse()).to(images)
        rows = rows.to(images.device)
        x = images[rows]
$before        # With kornia's default align_corners=True an image of one row or column comes out wrong.
        x = kornia.geometry.transform.$function(
            $arguments, (height, width), padding_mode=$padding, align_corners=False
        )
        images[rows] = $after
''')
_MEAN_LINE = "        mean = x.mean((2, 3), keepdim=True)$where  # around x - mean zeros stand for the mean\n"
_PADDING_LINE = '        padding = "reflection" if fill == "reflect" else "zeros"\n'

_CHANGE = '''

def change(images, decisions, table):
    """Operations on pixels, in place, each on the images that drew it; their row numbers are returned."""
    changed = []
    for name, function in table.items():
        if name in decisions:
            rows, m, u = decisions[name]
            rows = rows.to(images.device)
            m, *u = (numbers.to(images).view(-1, 1, 1, 1) for numbers in (m, *u))
            images[rows] = function(images[rows], m, u)
            changed.append(rows)
    return torch.cat(changed) if changed else []
'''

_CLASS = Template('''

class Policy(nn.Module):
    """Augments a batch (B, C, H, W), float in [0, 1], on any device; draws are made on the host."""
$head
    def forward(self, *batches):
        if len(batches) != 1:
            raise TypeError(f"needs one batch of images, which nothing else moves with, got {len(batches)} inputs")
        images = batches[0]
        if not isinstance(images, torch.Tensor):
            raise TypeError(f"needs a batch of images, a tensor (B, C, H, W), got {type(images).__name__}")
        if not self.training:
            return images
        if images.ndim != 4 or not images.is_floating_point():
            raise TypeError(f"needs a float batch of images (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"image values from {images.min():g} to {images.max():g}; allowed: [0, 1]")
        return self.apply(images, self.draw(len(images)))

    def draw(self, size):
        """What happens to `size` images.

        By name: the rows of the images it happens to (b,), their magnitudes (b,), and the random numbers that the
        operation needs beside, (b,) each.
        """
        decisions = {}
        chosen = torch.rand(size, len($operations)).argsort(1).argsort(1) < $n
        for i, (name, (probability, low, high, signed)) in enumerate($operations.items()):
            rows = (chosen[:, i] & (torch.rand(size) < probability)).nonzero()[:, 0]
            if len(rows):
                place, sign, *u = torch.rand($count, len(rows), dtype=torch.float64)
                magnitudes = low + (high - low) * place
                if signed:
                    magnitudes = torch.where(sign < 0.5, -magnitudes, magnitudes)
                decisions[name] = (rows, magnitudes, u)
        return decisions

    def apply(self, images, decisions):
        """The images after `decisions` such as `draw` makes; the batch given stays as it is."""
        dtype = images.dtype  # half precision is computed in single
        images = images.to(torch.promote_types(dtype, torch.float32), copy=True)
''')
_LINEAR_LINES = """        rows = change(images, decisions, LINEAR)
        if len(rows):
            images[rows] = images[rows].clamp(0, 1)
"""


def source(spec: PolicySpec, which: str) -> str:
    """The text of a file that defines `policy`, an `nn.Module`, and `base`, another, where there is a base view."""
    names, fills, words = needed_operations(spec, which), needed_fills(spec, which), class_words(spec, which)
    table, count = uniform_counts(names, 2)
    steps = ""
    if any(OPERATIONS[name].matrix for name in names):
        steps += f"        warp(images, decisions{words['fill']})\n"
    if any(name in LINEAR for name in names):
        steps += _LINEAR_LINES
    if any(OPERATIONS[name].pixels for name in names):
        steps += "        change(images, decisions, PIXELS)\n"
    body = table + geometry_functions(names, _warp(names, fills)) + pixel_functions(names, _FUNCTIONS)
    if "change(" in steps:
        body += _CHANGE
    body += _CLASS.substitute(words, count=count) + steps + "        return images.to(dtype)\n" + instances(spec, which)
    usage = _USAGE_OF_BOTH if spec.base else _USAGE
    return file_header(spec, which, title=_TITLE, usage=usage, imports=_IMPORTS, body=body) + body


def _warp(names: list[str], fills: set[str]) -> str:
    """The function `warp`, for perspective only where there is some, and for two fills only where there are two."""
    whole, mean, two = "perspective" in names, "mean" in fills, len(fills) > 1
    one = '"reflection"' if "reflect" in fills else '"zeros"'
    mean_line = _MEAN_LINE.replace("$where", ' if fill == "mean" else 0' if two else "")
    return _WARP.substitute(
        function="warp_perspective" if whole else "warp_affine",
        arguments=("x - mean" if mean else "x") + (", matrix" if whole else ", matrix[:, :2]"),
        padding="padding" if two else one,
        before=(mean_line if mean else "") + (_PADDING_LINE if two else ""),
        fill=", fill" if two else "",
        after="(x + mean).clamp(0, 1)  # rounding may leave it" if mean else "x",
    )
