"""Export as a module for kornia: one Python file, called on a batch, each image with a draw of its own.

Kornia's functions are used where they mean what ours do; where not, plain torch. Measured on kornia 0.9: its brightness
adds, its contrast and saturation clamp, its posterize counts levels in 255ths and is up to a whole level off, its
equalize bins by floor(255 x) where torchvision bins by floor(255.999 x).
"""

from kdsearch.export.source import applied, functions, header
from kdsearch.ops import OPERATIONS
from kdsearch.ops.photometric import LINEAR
from kdsearch.spec import PolicySpec

_TITLE = "An augmentation policy for kornia, found by kdsearch. It needs torch and kornia, not kdsearch."
_USAGE = """Use, in the training loop and before any normalisation, with this file's name:

    from policy import policy
    images = policy(images)  # (B, C, H, W), float in [0, 1]"""

_IMPORTS = {
    "kornia.": "import kornia",
    "torch.": "import torch",
    "nn.": "from torch import nn",
}

_FUNCTIONS = {
    "equalize": '''
def equalize(x, m, at):
    """On torchvision's 256 levels; kornia's own bins are others, so it is given values just above the levels."""
    return kornia.enhance.equalize(((x * 255.999).floor() + 1e-3) / 255)
''',
    "solarize": """
def solarize(x, m, at):
    return kornia.enhance.solarize(x, thresholds=1 - m.flatten())
""",
    "posterize": '''
def posterize(x, m, at):
    """m of 8 bits dropped, with torchvision's levels k / 2**bits; kornia's are k * 2**(8 - bits) / 255."""
    levels = 2 ** (8 - m.round())
    return (x * levels).floor().clamp(max=levels - 1) / levels
''',
    "invert": """
def invert(x, m, at):
    return kornia.enhance.invert(x)
""",
    "sharpness": """
def sharpness(x, m, at):
    return kornia.enhance.sharpness(x, 1 + m.flatten()) if min(x.shape[-2:]) >= 3 else x
""",
}

_MATRICES = {
    "horizontal_flip": """
def horizontal_flip(matrix, m, height, width):
    matrix[:, 0, 0] = -1
""",
    "scale": """
def scale(matrix, m, height, width):
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 + m
""",
    "shear_x": """
def shear_x(matrix, m, height, width):
    matrix[:, 0, 1] = -m
""",
    "shear_y": """
def shear_y(matrix, m, height, width):
    matrix[:, 1, 0] = -m
""",
    "rotate": '''
def rotate(matrix, m, height, width):
    """Clockwise, in degrees."""
    matrix[:, 0, 0] = matrix[:, 1, 1] = torch.deg2rad(m).cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -torch.deg2rad(m).sin(), torch.deg2rad(m).sin()
''',
    "translate_x": """
def translate_x(matrix, m, height, width):
    matrix[:, 0, 2] = m * width
""",
    "translate_y": """
def translate_y(matrix, m, height, width):
    matrix[:, 1, 2] = m * height
""",
}
_MATRIX_COMMENT = """

# Where pixels go, relative to the image centre (x right, y down), each function on identities (b, 3, 3).
"""
_WARP = '''

def warp(images, decisions):
    """Geometry: each image's maps multiplied into one, in the order of the table."""
    height, width = images.shape[-2:]
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(images), 1, 1)
    for name, function in GEOMETRY.items():
        if name in decisions:
            rows, m, _ = decisions[name]
            step = torch.eye(3, dtype=torch.float64).repeat(len(rows), 1, 1)
            function(step, m, height, width)
            matrix[rows] = step @ matrix[rows]
    rows = (matrix != torch.eye(3)).any(2).any(1).nonzero()[:, 0]
    if len(rows):
        centre = torch.eye(3, dtype=torch.float64)
        centre[:2, 2] = torch.tensor([(width - 1) / 2, (height - 1) / 2])
        matrix = (centre @ matrix[rows] @ centre.inverse())[:, :2].to(images.device, images.dtype)
        rows = rows.to(images.device)
        # With kornia's default align_corners=True an image of one row or column comes out wrong.
        images[rows] = kornia.geometry.transform.warp_affine(images[rows], matrix, (height, width), align_corners=False)
'''

_CHANGE = '''

def change(images, decisions, table):
    """Operations on pixels, in place, each on the images that drew it; their row numbers are returned."""
    changed = []
    for name, function in table.items():
        if name in decisions:
            rows, m, at = decisions[name]
            rows, m, at = rows.to(images.device), m.to(images), at.to(images)
            images[rows] = function(images[rows], m.view(-1, 1, 1, 1), at.view(2, -1, 1, 1, 1))
            changed.append(rows)
    return torch.cat(changed) if changed else []
'''

_CLASS = '''

class Policy(nn.Module):
    """Augments a batch (B, C, H, W), float in [0, 1], on any device; draws are made on the host."""

    def forward(self, images):
        if not self.training:
            return images
        if images.ndim != 4 or not images.is_floating_point():
            raise TypeError(f"needs a float batch (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
        return self.apply(images, self.draw(len(images)))

    def draw(self, size):
        """What happens to `size` images.

        By name: the rows of the images it happens to (b,), their magnitudes (b,), and positions (2, b): y and x as
        fractions of the sides.
        """
        decisions = {}
        chosen = torch.rand(size, len(OPERATIONS)).argsort(1).argsort(1) < OPERATIONS_PER_IMAGE
        for i, (name, (probability, low, high, signed)) in enumerate(OPERATIONS.items()):
            rows = (chosen[:, i] & (torch.rand(size) < probability)).nonzero()[:, 0]
            if len(rows):
                u, sign, y, x = torch.rand(4, len(rows), dtype=torch.float64)
                magnitudes = low + (high - low) * u
                if signed:
                    magnitudes = torch.where(sign < 0.5, -magnitudes, magnitudes)
                decisions[name] = (rows, magnitudes, torch.stack([y, x]))
        return decisions

    def apply(self, images, decisions):
        """The images after `decisions` such as `draw` makes; the batch given stays as it is."""
        images = images.clone()
'''
_LINEAR_LINES = """        rows = change(images, decisions, LINEAR)
        if len(rows):
            images[rows] = images[rows].clamp(0, 1)
"""


def source(spec: PolicySpec, which: str) -> str:
    """The text of a file that defines `policy`, an `nn.Module`."""
    names = applied(spec, which)
    moves = [name for name in names if OPERATIONS[name].matrix]
    body, steps = "", ""
    if moves:
        body += _MATRIX_COMMENT + "\n\n".join(_MATRICES[name].lstrip("\n") for name in moves)
        body += "\n\nGEOMETRY = {\n" + "".join(f'    "{name}": {name},\n' for name in moves) + "}\n" + _WARP
        steps += "        warp(images, decisions)\n"
    body += functions(names, _FUNCTIONS)
    if any(OPERATIONS[name].pixels for name in names):
        body += _CHANGE
    if any(name in LINEAR for name in names):
        steps += _LINEAR_LINES
    if any(OPERATIONS[name].pixels and name not in LINEAR for name in names):
        steps += "        change(images, decisions, PIXELS)\n"
    body += _CLASS + steps + "        return images\n\n\npolicy = Policy()\n"
    return header(spec, which, title=_TITLE, usage=_USAGE, imports=_IMPORTS, body=body) + body
