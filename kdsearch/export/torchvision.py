"""Export as a transform for torchvision: one Python file, called on one image in a data loader's workers."""

from kdsearch.export.source import applied, functions, header
from kdsearch.ops import OPERATIONS
from kdsearch.ops.photometric import LINEAR
from kdsearch.spec import PolicySpec

_TITLE = "An augmentation policy for torchvision, found by kdsearch. It needs torch and torchvision, not kdsearch."
_USAGE = """Use, among the transforms of a data set and before any normalisation, with this file's name:

    from policy import policy
    from torchvision.transforms import v2
    transform = v2.Compose([policy, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])"""

_IMPORTS = {
    "math.": "import math\n",
    "torch.": "import torch",
    "nn.": "from torch import nn",
    "tv_tensors.": "from torchvision import tv_tensors",
    "InterpolationMode.": "from torchvision.transforms import InterpolationMode",
    "F.": "from torchvision.transforms.v2 import functional as F",
}

_FUNCTIONS = {
    "equalize": """
def equalize(x, m, at):
    return F.equalize(x)
""",
    "solarize": """
def solarize(x, m, at):
    return F.solarize(x, threshold=1 - m)
""",
    "posterize": """
def posterize(x, m, at):
    return F.posterize(x, bits=8 - round(m))
""",
    "invert": """
def invert(x, m, at):
    return F.invert(x)
""",
    "sharpness": """
def sharpness(x, m, at):
    return F.adjust_sharpness(x, sharpness_factor=1 + m)
""",
}

_CLASS = '''

class Policy(nn.Module):
    """Augments one image: PIL (L or RGB), uint8 or float in [0, 1] of shape (C, H, W); returns the same kind."""

    def forward(self, image):
        if not self.training:
            return image
        if not isinstance(image, torch.Tensor):
            if image.mode not in ("L", "RGB"):
                raise TypeError(f'a PIL image of mode {image.mode}; convert it first: image.convert("RGB")')
            return F.to_pil_image(self(F.pil_to_tensor(image)), mode=image.mode)
        if image.ndim != 3 or not (image.is_floating_point() or image.dtype == torch.uint8):
            raise TypeError(f"needs one uint8 or float image (C, H, W), got {image.dtype} {tuple(image.shape)}")
        pixels = image.as_subclass(torch.Tensor)
        if image.dtype == torch.uint8:
            out = (self.apply(pixels / 255, self.draw()) * 255).round().to(torch.uint8)
        else:
            out = self.apply(pixels.float(), self.draw()).to(image.dtype)
        return tv_tensors.wrap(out, like=image)

    def draw(self):
        """What happens to one image: a list of (name, magnitude, (y, x)), the last as fractions of the sides."""
        names, decisions = list(OPERATIONS), []
        for i in sorted(torch.randperm(len(names))[:OPERATIONS_PER_IMAGE].tolist()):
            probability, low, high, signed = OPERATIONS[names[i]]
            gate, u, sign, y, x = torch.rand(5, dtype=torch.float64).tolist()
            if gate < probability:
                magnitude = low + (high - low) * u
                decisions.append((names[i], -magnitude if signed and sign < 0.5 else magnitude, (y, x)))
        return decisions

    def apply(self, image, decisions):
        """The image, float in [0, 1] of shape (C, H, W), after `decisions` such as `draw` makes."""
'''
_LINEAR_LOOP = """        if any(name in decided for name in LINEAR):
            for name, function in LINEAR.items():
                image = function(image, *decided[name]) if name in decided else image
            image = image.clamp(0, 1)
"""
_PIXELS_LOOP = """        for name, function in PIXELS.items():
            image = function(image, *decided[name]) if name in decided else image
"""


def source(spec: PolicySpec, which: str) -> str:
    """The text of a file that defines `policy`, an `nn.Module`."""
    names = applied(spec, which)
    steps = []
    if names:
        steps.append("        decided = {name: (magnitude, at) for name, magnitude, at in decisions}\n")
    if any(OPERATIONS[name].matrix for name in names):
        steps.append("        image = warp(image, {name: magnitude for name, (magnitude, _) in decided.items()})\n")
    if any(name in LINEAR for name in names):
        steps.append(_LINEAR_LOOP)
    if any(OPERATIONS[name].pixels and name not in LINEAR for name in names):
        steps.append(_PIXELS_LOOP)
    body = _warp(names) + functions(names, _FUNCTIONS) + _CLASS + "".join(steps) + "        return image\n"
    body += "\n\npolicy = Policy()\n"
    return header(spec, which, title=_TITLE, usage=_USAGE, imports=_IMPORTS, body=body) + body


def _warp(names: list[str]) -> str:
    """The function `warp`, in terms of the geometric operations among `names` alone."""
    flips = "horizontal_flip" in names
    moves = [name for name in names if OPERATIONS[name].matrix and name != "horizontal_flip"]
    if not flips and not moves:
        return ""

    def value(name: str, with_it: str, without: str = "0.0") -> str:
        return with_it.format(f'm.get("{name}", 0.0)') if name in moves else without

    lines = ["", "", "def warp(image, m):", '    """Geometry, by the magnitudes of what was drawn."""']
    if flips:
        lines += ['    if "horizontal_flip" in m:', "        image = F.horizontal_flip(image)"]
    if moves:
        table = "(" + ", ".join(f'"{name}"' for name in moves) + ("," if len(moves) == 1 else "") + ")"
        lines += [f"    if not any(name in m for name in {table}):", "        return image"]
        if {"translate_x", "translate_y"} & set(moves):
            lines.append("    height, width = image.shape[-2:]")
        shear = "math.degrees(math.atan({}))"
        translate = f"[{value('translate_x', '{} * width')}, {value('translate_y', '{} * height')}]"
        lines += [
            "    # No `fill`: torchvision's fill of 0 darkens the border twice, outside is 0 without it.",
            "    return F.affine(",
            "        image,",
            f"        angle={value('rotate', '{}')},  # degrees, clockwise",
            f"        translate={translate},  # pixels",
            f"        scale={value('scale', '1 + {}', '1.0')},",
            "        shear=[  # degrees, from slopes",
            f"            {value('shear_x', shear)},",
            f"            {value('shear_y', shear)},",
            "        ],",
            "        interpolation=InterpolationMode.BILINEAR,",
            "    )",
        ]
    else:
        lines.append("    return image")
    return "\n".join(lines) + "\n"
