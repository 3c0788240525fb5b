"""What the exported Python files have in common: their header, their table of numbers, their plain torch functions.

A file is put together from literal pieces, one per operation it applies. Nothing from a policy file enters the code but
names out of `OPERATIONS` and numbers; provenance, which anyone may have written, stands quoted in comments.
"""

import textwrap
from collections.abc import Mapping
from string import Template

from kdsearch.augment.operations import LINEAR
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import PolicySpec

WIDTH = 120

_HEADER = Template('''"""$title

$drawn

$usage

$off. Random numbers come from torch's global generator.
"""

# Made by kdsearch from the $which numbers of a policy of format $format, version $version. Provenance:
$provenance

$imports

$tables''')
_TABLE = Template("""${base}OPERATIONS_PER_IMAGE = $n
${base}OPERATIONS = {  # $comment
$rows
}
""")
_COLUMNS = "in the order of application, name: (probability once drawn, low, high, signed)"
_EXTRA_REPR = Template("""
    def extra_repr(self):
        lines = [f"each image draws {$n} of {len($operations)} operations"]
        for name, (probability, low, high, signed) in $operations.items():
            reach = f", {'+-' if signed else ''}{low:.3g} to {high:.3g}" if high else ""
            lines.append(f"{name}: probability {probability:.2f}{reach}")
        return "\\n".join(lines)
""")
_INIT = Template("""
    def __init__(self, operations, operations_per_image$fill):
        super().__init__()
        self.operations, self.operations_per_image$own = operations, operations_per_image$fill
""")
_DRAWN = Template(
    "Each image draws $n of the $total operations below without replacement, each with the same chance. A drawn "
    "operation is applied with its probability; its magnitude is uniform on [low, high], its sign random where it is "
    "signed. Operations come in the table's order$geometry."
)
_BASE_DRAWN = Template(
    "The policy was found over a base view: every image goes through that first, and the policy over what comes out. "
    "The base view draws $n of the $total operations of BASE_OPERATIONS in the same way$geometry."
)
_FILL = {
    "zero": "zeros where nothing comes from",
    "mean": "the mean of each channel where nothing comes from",
    "reflect": "mirrored at the edge where nothing comes from",
}

# Each function works on one identity (3, 3) and on identities (b, 3, 3), with magnitudes and numbers per image.
_MATRICES: Mapping[str, str] = {
    "horizontal_flip": """
def horizontal_flip(matrix, m, u, height, width):
    matrix[..., 0, 0] = -1
""",
    "vertical_flip": """
def vertical_flip(matrix, m, u, height, width):
    matrix[..., 1, 1] = -1
""",
    "scale": """
def scale(matrix, m, u, height, width):
    matrix[..., 0, 0] = matrix[..., 1, 1] = 1 + m
""",
    "shear_x": """
def shear_x(matrix, m, u, height, width):
    matrix[..., 0, 1] = -m
""",
    "shear_y": """
def shear_y(matrix, m, u, height, width):
    matrix[..., 1, 0] = -m
""",
    "rotate": '''
def rotate(matrix, m, u, height, width):
    """Clockwise, in degrees."""
    matrix[..., 0, 0] = matrix[..., 1, 1] = torch.deg2rad(m).cos()
    matrix[..., 0, 1], matrix[..., 1, 0] = -torch.deg2rad(m).sin(), torch.deg2rad(m).sin()
''',
    "translate_x": """
def translate_x(matrix, m, u, height, width):
    matrix[..., 0, 2] = m * width
""",
    "translate_y": """
def translate_y(matrix, m, u, height, width):
    matrix[..., 1, 2] = m * height
""",
    "perspective": '''
def perspective(matrix, m, u, height, width):
    """Each corner moves inwards, along each side by m times a number of its own.

    The map of the unit square to a quadrilateral: Heckbert, Fundamentals of texture mapping and image warping, 1989.
    """
    x0, y0, x1, y1, x2, y2, x3, y3 = (m * number for number in u)  # top left, then clockwise
    x1, x2, y2, y3 = 1 - x1, 1 - x2, 1 - y2, 1 - y3
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / area, (dx1 * sy - sx * dy1) / area
    matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2] = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2] = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    matrix[..., 2, 0], matrix[..., 2, 1] = g, h
    pixels = matrix.new_tensor([[width, 0, -width / 2], [0, height, -height / 2], [0, 0, 1]])
    matrix[:] = pixels @ matrix @ pixels.inverse()
''',
}
_MATRICES_COMMENT = """

# Where pixels go, relative to the image centre (x right, y down): each function fills in identities, by magnitude m and
# random numbers u, uniform on [0, 1)."""

# Each function works on one image (C, H, W) with plain numbers and on images (b, C, H, W) with numbers per image.
_PIXELS: Mapping[str, str] = {
    "brightness": """
def brightness(x, m, u):
    return x * (1 + m)
""",
    "contrast": """
def contrast(x, m, u):
    mean = luma(x).mean((-3, -2, -1), keepdim=True)
    return mean + (1 + m) * (x - mean)
""",
    "saturation": """
def saturation(x, m, u):
    return luma(x) + (1 + m) * (x - luma(x)) if x.shape[-3] == 3 else x
""",
    "gray": """
def gray(x, m, u):
    return luma(x).expand_as(x) if x.shape[-3] == 3 else x
""",
    "channel_shift": '''
def channel_shift(x, m, u):
    """x + m in one channel, each as likely."""
    channels = torch.arange(x.shape[-3], device=x.device)[:, None, None]
    return x + m * (channels == u[0] * len(channels) // 1)
''',
    "noise": '''
def noise(x, m, u):
    """Gaussian noise of standard deviation m on every value."""
    return (x + m * torch.randn_like(x)).clamp(0, 1)
''',
    "erase": '''
def erase(x, m, u):
    """A rectangle of m times both sides around a random place set to 0, cut off at the border."""
    height, width = x.shape[-2:]
    off_y = (torch.arange(height, device=x.device)[:, None] + 0.5) / height - u[0]
    off_x = (torch.arange(width, device=x.device) + 0.5) / width - u[1]
    return x.masked_fill((off_y.abs() <= m / 2) & (off_x.abs() <= m / 2), 0.0)
''',
}
_USES_LUMA = {"contrast", "saturation", "gray"}

_PIXELS_COMMENT = """

# Operations on pixels x in [0, 1], by magnitude m and random numbers u, uniform on [0, 1)."""
_LINEAR_COMMENT = """

# Linear in the pixels, not clamped one by one but once after the last of them: this is how the policy was searched.
"""


def applied_operations(spec: PolicySpec, which: str) -> list[str]:
    """The operations that can happen, in table order, without those of the base view."""
    settings = spec.which(which)
    return [name for name in OPERATIONS if name in settings and settings[name].probability > 0]


def parts(spec: PolicySpec, which: str) -> list[tuple[PolicySpec, str]]:
    """The policy, and its base view at its last moment where there is one: what stands in a file."""
    return [(spec, which), (spec.base, "final")] if spec.base else [(spec, which)]


def needed_operations(spec: PolicySpec, which: str) -> list[str]:
    """The operations that can happen in the policy or in its base view, in table order."""
    needed = {name for part in parts(spec, which) for name in applied_operations(*part)}
    return [name for name in OPERATIONS if name in needed]


def needed_fills(spec: PolicySpec, which: str) -> set[str]:
    """What stands where geometry finds no pixel: two where the policy and its base view both move, and differ."""
    return {part.fill for part, of in parts(spec, which) if _moves(part, of)} or {spec.fill}


def class_words(spec: PolicySpec, which: str) -> dict[str, str]:
    """What the class `Policy` calls its numbers: constants of the file, or its own where a base view is one too."""
    fills = len(needed_fills(spec, which)) > 1
    own = spec.base is not None
    names = {
        "n": "self.operations_per_image" if own else "OPERATIONS_PER_IMAGE",
        "operations": "self.operations" if own else "OPERATIONS",
        "fill": ", self.fill" if fills else "",
        "first": "[: self.operations_per_image]" if own else "[:OPERATIONS_PER_IMAGE]",
    }
    init = _INIT.substitute(fill=", fill" * fills, own=", self.fill" * fills) if own else ""
    return {**names, "head": init + _EXTRA_REPR.substitute(names)}


def instances(spec: PolicySpec, which: str) -> str:
    """The last lines of a file, which make what is imported from it."""
    if spec.base is None:
        return "\n\npolicy = Policy()\n"
    base, own = (f', "{fill}"' if len(needed_fills(spec, which)) > 1 else "" for fill in (spec.base.fill, spec.fill))
    made = f"policy = Policy(OPERATIONS, OPERATIONS_PER_IMAGE{own})\n"
    return f"\n\nbase = Policy(BASE_OPERATIONS, BASE_OPERATIONS_PER_IMAGE{base})\n{made}"


def file_header(spec: PolicySpec, which: str, *, title: str, usage: str, imports: Mapping[str, str], body: str) -> str:
    """Everything above the functions.

    Args:
        imports: By the name that the body of the file uses; the others are left out.
    """
    drawn, tables, off = (
        [_drawn(_DRAWN, spec, which)],
        [_table(spec, which, _COLUMNS)],
        "`policy.eval()` switches it off",
    )
    if spec.base:
        drawn.append(_drawn(_BASE_DRAWN, spec.base, "final"))
        tables.append(_table(spec.base, "final", "of the base view", base="BASE_"))
        off = "`base.eval()` and `policy.eval()` switch them off"
    return _HEADER.substitute(
        title=title,
        usage=usage,
        which=which,
        drawn="\n\n".join(drawn),
        off=off,
        format=spec.format,
        version=spec.version,
        provenance="\n".join(_comment(*item) for item in spec.provenance.items()) or "#   none recorded",
        imports="\n".join(line for name, line in imports.items() if name in body or not line),
        tables="".join(tables),
    )


def _drawn(words: Template, spec: PolicySpec, which: str) -> str:
    geometry = f", those of geometry as one warp (bilinear, {_FILL[spec.fill]})" if _moves(spec, which) else ""
    text = words.substitute(n=spec.operations_per_image, total=len(spec.operations), geometry=geometry)
    return textwrap.fill(text, WIDTH)


def _table(spec: PolicySpec, which: str, comment: str, base: str = "") -> str:
    rows = "\n".join(_row(spec, which, name) for name in OPERATIONS if name in spec.operations)
    return _TABLE.substitute(base=base, n=spec.operations_per_image, comment=comment, rows=rows)


def _moves(spec: PolicySpec, which: str) -> bool:
    return any(OPERATIONS[name].matrix for name in applied_operations(spec, which))


def uniform_counts(names: list[str], others: int) -> tuple[str, str]:
    """How many random numbers an operation draws: a table for those that need more than the `others`, and the count.

    Returns:
        The text of the table, empty where nothing needs it, and an expression in `name`.
    """
    more = ", ".join(f'"{name}": {OPERATIONS[name].uniforms}' for name in names if OPERATIONS[name].uniforms)
    if not more:
        return "", str(others)
    return f"UNIFORMS = {{{more}}}  # random numbers of its own, by operation\n", f"{others} + UNIFORMS.get(name, 0)"


def geometry_functions(names: list[str], warp: str) -> str:
    """The matrices of the geometric operations among `names`, the table GEOMETRY that leads to them, and `warp`."""
    moves = [name for name in names if OPERATIONS[name].matrix]
    if not moves:
        return ""
    text = _MATRICES_COMMENT + "\n".join(_MATRICES[name] for name in moves)
    return text + "\n\n" + _mapping("GEOMETRY", moves) + warp


def pixel_functions(names: list[str], own: Mapping[str, str]) -> str:
    """The functions on pixels of the operations `names`, and the tables LINEAR and PIXELS that lead to them."""
    pixels = [name for name in names if not OPERATIONS[name].matrix]
    needed = ["luma"] * bool(_USES_LUMA & set(pixels)) + pixels
    if not needed:
        return ""
    text = _PIXELS_COMMENT + "\n".join({**_PIXELS, **own}[name] for name in needed)
    linear = [name for name in pixels if name in LINEAR]
    rest = [name for name in pixels if name not in LINEAR]
    if linear:
        text += _LINEAR_COMMENT + _mapping("LINEAR", linear)
    return text + ("\n" * (1 if linear else 2) + _mapping("PIXELS", rest) if rest else "")


def _mapping(title: str, names: list[str]) -> str:
    return f"{title} = {{\n" + "".join(f'    "{name}": {name},\n' for name in names) + "}\n"


def _row(spec: PolicySpec, which: str, name: str) -> str:
    op, setting, rate = OPERATIONS[name], spec.which(which)[name], spec.rate(name, which)
    numbers = ", ".join(_number(value or 0.0) for value in (setting.probability, setting.low, setting.high))
    reach = f"on {rate:.1%} of images" if rate else "never applied"
    return f'    "{name}": ({numbers}, {op.signed}),  # ' + ", ".join(filter(None, (op.unit, reach)))


def _number(value: float) -> str:
    """Six digits: far more than a policy is known to."""
    return repr(float(f"{value:.6g}"))


def _comment(key: str, value: object) -> str:
    # Quoted ASCII holds no line break and nothing that an editor shows as something else; the prefix keeps tools
    # from taking a comment for an instruction.
    line = f"#   {key!a}: {value!a}"
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
