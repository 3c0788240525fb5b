"""What the exported Python files have in common: their header, their table of numbers, their plain torch functions.

A file is put together from literal pieces, one per operation it applies. Nothing from a policy file enters the code but
names out of `OPERATIONS` and numbers; provenance, which anyone may have written, stands quoted in comments.
"""

from collections.abc import Mapping
from string import Template

from kdsearch.ops import OPERATIONS
from kdsearch.ops.photometric import LINEAR
from kdsearch.spec import PolicySpec

WIDTH = 120

_HEADER = Template('''"""$title

Each image draws $n of the $total operations below without replacement, each with the same chance. A drawn operation is
applied with its probability; its magnitude is uniform on [low, high], its sign random where it is signed. Geometry
comes first, as one warp (bilinear, zeros where nothing comes from), then operations on pixels, in the table's order.

$usage

`policy.eval()` switches it off. Random numbers come from torch's global generator.
"""

# Made by kdsearch from the $which numbers of a policy of format $format, version $version. Provenance:
$provenance

$imports

OPERATIONS_PER_IMAGE = $n
OPERATIONS = {  # in the order of application, name: (probability once drawn, low, high, signed)
$table
}
''')

# Each function works on one image (C, H, W) with plain numbers and on images (b, C, H, W) with a number per image.
_SHARED: Mapping[str, str] = {
    "gray": '''
def gray(x):
    """Luma of colour images (ITU-R 601, as torchvision rounds it), the mean of the channels of others."""
    if x.shape[-3] != 3:
        return x.mean(-3, keepdim=True)
    red, green, blue = x.split(1, -3)
    return 0.2989 * red + 0.587 * green + 0.114 * blue
''',
    "brightness": """
def brightness(x, m, at):
    return x * (1 + m)
""",
    "contrast": """
def contrast(x, m, at):
    mean = gray(x).mean((-3, -2, -1), keepdim=True)
    return mean + (1 + m) * (x - mean)
""",
    "saturation": """
def saturation(x, m, at):
    return gray(x) + (1 + m) * (x - gray(x))
""",
    "noise": '''
def noise(x, m, at):
    """Gaussian noise of standard deviation m on every value."""
    return (x + m * torch.randn_like(x)).clamp(0, 1)
''',
    "erase": '''
def erase(x, m, at):
    """A rectangle of m times both sides around `at` set to 0, cut off at the border."""
    height, width = x.shape[-2:]
    off_y = (torch.arange(height, device=x.device)[:, None] + 0.5) / height - at[0]
    off_x = (torch.arange(width, device=x.device) + 0.5) / width - at[1]
    return x.masked_fill((off_y.abs() <= m / 2) & (off_x.abs() <= m / 2), 0.0)
''',
}
_USES_GRAY = {"contrast", "saturation"}

_PIXELS_COMMENT = """

# Operations on pixels x in [0, 1], by magnitude m; `at` is a random place (y, x), in fractions of the sides."""
_LINEAR_COMMENT = """

# Linear in the pixels, not clamped one by one but once after the last of them: this is how the policy was searched.
"""


def applied(spec: PolicySpec, which: str) -> list[str]:
    """The operations that can happen, in table order."""
    settings = spec.which(which)
    return [name for name in OPERATIONS if name in settings and settings[name].probability > 0]


def header(spec: PolicySpec, which: str, *, title: str, usage: str, imports: Mapping[str, str], body: str) -> str:
    """Everything above the functions.

    Args:
        imports: By the name that the body of the file uses; the others are left out.
    """
    return _HEADER.substitute(
        title=title,
        usage=usage,
        which=which,
        format=spec.format,
        version=spec.version,
        n=spec.operations_per_image,
        total=len(spec.operations),
        provenance="\n".join(_comment(*item) for item in spec.provenance.items()) or "#   none recorded",
        imports="\n".join(line for name, line in imports.items() if name in body or not line),
        table="\n".join(_row(spec, which, name) for name in OPERATIONS if name in spec.operations),
    )


def functions(names: list[str], own: Mapping[str, str]) -> str:
    """The functions on pixels of the operations `names`, and the tables LINEAR and PIXELS that lead to them."""
    pixels = [name for name in names if OPERATIONS[name].pixels]
    needed = ["gray"] * bool(_USES_GRAY & set(pixels)) + pixels
    if not needed:
        return ""
    text = _PIXELS_COMMENT + "\n".join({**_SHARED, **own}[name] for name in needed)
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
