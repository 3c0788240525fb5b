"""What a policy does to images, on one sheet: each operation alone over its range, draws of it all, its base view."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from kdsearch.analysis.plots import ALONE, ShownFigure
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.operations import apply
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import PolicySpec, Setting, format_range
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.terminal import format_number
from kdsearch.core.values import Draw
from kdsearch.data.images import photographs
from kdsearch.probe.disagreement import draw_operation

IMAGES = 4  # on a sheet, at most
IN_ROW = 2  # images beside each other in the row of an operation
DRAWS = 12  # of the whole policy, at least
DPI = 130
SIDE, GAP, LEFT, EDGE, LINE, BAR = 128, 6, 345, 14, 17, 150  # pixels: longest side of a tile, ..., line of text, bar
TITLE = 56  # pixels that the words over a column need
DARK, GRAY = "#222222", "#666666"


class Row(NamedTuple):
    """One operation of a sheet."""

    operation: str
    rate: float
    text: str  # probability and rate; the range with its unit
    tiles: tuple[Tensor, ...]  # (N, C, H, W) each: at the low end, the middle and the high end, or one without a range


class Sheet(NamedTuple):
    """What is on a sheet, before it is drawn."""

    rows: list[Row]  # the most frequent first
    left_out: list[str]  # sentences about operations without a row
    drawn: list[Tensor]  # (N, C, H, W) each: draws of the whole policy, over the base views
    base: list[Tensor]  # (N, C, H, W) each: those base views; none where the policy has no base view


def policy_sheet(
    spec: PolicySpec, images: Tensor | None = None, *, which: str = "final", most: int | None = None
) -> ShownFigure:
    """What a policy does: each operation alone beside the original, at the low end, the middle and the high end.

    The operation applied to the most images comes first; below are draws of the whole policy, on the same images,
    each under the base view that it was made over where the policy has one.

    Args:
        images: (N, C, H, W), float in [0, 1] or uint8, 1 or 3 channels; four are shown. `load_images` reads them from
            files, those of a trial from the `samples.npz` beside its policy. Two photographs by default.
        which: The `final` policy or the `average`.
        most: Rows to draw; the other operations are named below.
    """
    images = (photographs() if images is None else images)[:IMAGES]
    sheet = contents(spec, images, which=which, most=most)
    canvas = _Canvas.of(images, columns=4 * min(IN_ROW, len(images)))
    n, count = spec.operations_per_image, len(spec.operations)
    rules = (
        f"{which} policy, fill {spec.fill}. probability: of an operation once drawn; rate: share of all images it is "
        "applied to (the bar); ±: of either sign, the positive one is shown."
    )
    if spec.base:
        rules += " Operations alone are drawn on the original, the whole policy over the base view."
    canvas.paragraph(rules, EDGE)
    if sheet.rows:
        canvas.titles(["original", "low", "middle", "high"] * min(IN_ROW, len(images)))
    for row in sheet.rows:
        ends = row.tiles if len(row.tiles) == 3 else (None, row.tiles[0], None)
        shown = range(min(IN_ROW, len(images)))
        canvas.row([t for k in shown for t in (images[k], *(None if end is None else end[k] for end in ends))])
        canvas.label(row.operation, row.text, row.rate)
    for sentence in sheet.left_out:
        canvas.paragraph(sentence, EDGE)
    canvas.y += LINE
    canvas.titles(["original", *["drawn"] * (canvas.columns - 1)])
    each = f"each image draws {n} of the {count} operations and gets each with its probability"
    for first in range(0, len(sheet.drawn), canvas.columns - 1):
        some = slice(first, first + canvas.columns - 1)
        for k, image in enumerate(images):
            if spec.base:
                canvas.row([image, *(base[k] for base in sheet.base[some])])
                if first == k == 0:
                    canvas.label("the base view", _base_text(spec.base))
            canvas.row([None if spec.base else image, *(drawn[k] for drawn in sheet.drawn[some])])
            if first == k == 0:
                over = "over the base view above it: " if spec.base else ""
                canvas.label("the whole policy", over + each)
    return canvas.figure()


def contents(spec: PolicySpec, images: Tensor, *, which: str = "final", most: int | None = None) -> Sheet:
    """The tiles and texts of a sheet; the same for the same arguments.

    Raises:
        KdsearchError: no images, or neither gray nor RGB.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise KdsearchError(f"images: need (N, 1 or 3, H, W); got {tuple(images.shape)}")
    settings = spec.which(which)
    order = sorted(settings, key=lambda name: -settings[name].probability)
    used = [name for name in order if settings[name].probability > 0]
    idle = [name for name in used if not OPERATIONS[name].suits(images.shape[1])]
    shown = [name for name in used if name not in idle]
    kept = shown[:most]
    sentences = {
        "never applied": [name for name in settings if name not in used],
        "no effect on gray images": idle,
        "not drawn here": [f"{name} (rate {format_number(spec.rate(name, which))})" for name in shown[len(kept) :]],
    }
    rows = [
        Row(
            name,
            spec.rate(name, which),
            _text(spec, name, which),
            operation_tiles(name, settings[name], images, spec.fill),
        )
        for name in kept
    ]
    policy, random = Policy.from_spec(spec, which), generator("sheet")
    per_turn = 4 * min(IN_ROW, len(images)) - 1
    turns = -(-DRAWS // (per_turn * len(images)))
    draws = [policy.draw(len(images), random) for _ in range(turns * per_turn)]
    bases: list[Draw] = []
    if spec.base:
        base, own = Policy.from_spec(spec.base), generator("sheet", "base view")
        bases = [base.draw(len(images), own) for _ in draws]
        draws = [replace(draw, base=under) for draw, under in zip(draws, bases, strict=True)]
    left_out = [f"{what}: {', '.join(names)}" for what, names in sentences.items() if names]
    return Sheet(rows, left_out, *([apply(draw, images).images for draw in some] for some in (draws, bases)))


def operation_tiles(name: str, setting: Setting, images: Tensor, fill: str) -> tuple[Tensor, ...]:
    """An operation alone at the ends and the middle of its range, positive where signed, other chance the same."""
    if setting.low is None or setting.high is None:
        magnitudes = [0.0]
    else:
        magnitudes = [setting.low, (setting.low + setting.high) / 2, setting.high]
    draws = (draw_operation(name, len(images), generator("sheet", name), low=m, high=m, fill=fill) for m in magnitudes)
    return tuple(apply(draw, images, draw.magnitudes.abs()).images for draw in draws)


def _text(spec: PolicySpec, name: str, which: str) -> str:
    setting = spec.which(which)[name]
    text = f"probability {setting.probability:.2f}, rate {format_number(spec.rate(name, which))}"
    if setting.low is None or setting.high is None:
        return text
    return f"{text}\n{format_range(name, setting.low, setting.high, spec.operations[name].unit)}"


def _base_text(base: PolicySpec) -> str:
    """The operations of a base view, the most frequent first, a line each."""
    applied = sorted((name for name in base.operations if base.rate(name)), key=lambda name: -base.rate(name))
    return "\n".join([f"every image, first; fill {base.fill}", *(f"{name}: {base.in_words(name)}" for name in applied)])


@dataclass
class _Canvas:
    """A picture that grows downwards, in pixels: rows of tiles with a text on the left."""

    height: int  # of a tile
    width: int  # of a column
    columns: int
    y: int = EDGE
    tiles: list[tuple[int, int, np.ndarray]] = field(default_factory=list)  # top, left, (h, w, 3) uint8
    texts: list[tuple[float, float, str, dict[str, Any]]] = field(default_factory=list)  # x, y, text, how
    bars: list[tuple[float, float]] = field(default_factory=list)  # y, rate

    @classmethod
    def of(cls, images: Tensor, columns: int) -> "_Canvas":
        height, width, _ = _tile(images[0]).shape
        return cls(height, max(width, TITLE), columns)

    @property
    def across(self) -> int:
        return LEFT + self.columns * (self.width + GAP) + EDGE - GAP

    def paragraph(self, text: str, x: int) -> None:
        """Lines over the whole width, in small letters."""
        for line in textwrap.wrap(text, int((self.across - x - EDGE) / 7.2), break_on_hyphens=False):
            self.texts.append((x, self.y, line, {"color": GRAY, "fontsize": 7.5}))
            self.y += LINE
        self.y += GAP

    def titles(self, titles: Sequence[str]) -> None:
        """A line of words over the columns."""
        for i, title in enumerate(titles):
            x = LEFT + i * (self.width + GAP) + self.width / 2
            self.texts.append((x, self.y, title, {"color": GRAY, "fontsize": 7, "ha": "center"}))
        self.y += LINE

    def row(self, images: Sequence[Tensor | None]) -> None:
        """One row of tiles; None leaves a place empty."""
        for i, image in enumerate(images):
            if image is not None:
                self.tiles.append((self.y, LEFT + i * (self.width + GAP), _tile(image)))
        self.y += self.height + GAP

    def label(self, name: str, text: str, rate: float | None = None) -> None:
        """Beside the row drawn last."""
        lines = [line for part in text.split("\n") for line in textwrap.wrap(part, 44, break_on_hyphens=False)]
        top = self.y - GAP - self.height
        self.texts.append((EDGE, top, name, {"color": DARK, "fontsize": 9, "weight": "bold"}))
        for i, line in enumerate(lines):
            self.texts.append((EDGE, top + LINE * (i + 1) + 5, line, {"color": DARK, "fontsize": 7.5}))
        if rate is not None:
            self.bars.append((top + 8, rate))
        self.y = max(self.y, top + LINE * (len(lines) + 1) + 5 + 2 * GAP)

    def figure(self) -> ShownFigure:
        sheet = np.full((self.y + EDGE, self.across, 3), 255, dtype=np.uint8)
        for top, left, tile in self.tiles:
            bottom, right = top + len(tile), left + tile.shape[1]
            sheet[top - 1 : bottom + 1, left - 1 : right + 1] = 200  # an edge, for tiles as white as the page
            sheet[top:bottom, left:right] = tile
        figure = ShownFigure(figsize=(sheet.shape[1] / DPI, sheet.shape[0] / DPI), dpi=DPI)
        axes: Axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(sheet, interpolation="nearest", extent=(0, sheet.shape[1], sheet.shape[0], 0))
        for x, y, text, how in self.texts:
            axes.text(x, y, text, va="top", **how)
        for y, rate in self.bars:
            axes.add_patch(Rectangle((LEFT - EDGE - BAR, y), BAR, 6, color="#e8e8e8", lw=0))
            axes.add_patch(Rectangle((LEFT - EDGE - BAR, y), BAR * rate, 6, color=ALONE, lw=0))
        axes.set_axis_off()
        return figure


def _tile(image: Tensor) -> np.ndarray:
    """(C, H, W) as (h, w, 3) uint8: small ones larger by whole pixels, big ones smaller."""
    x = image / 255 if image.dtype == torch.uint8 else image
    side = max(x.shape[-2:])
    if side > SIDE:
        size = [max(1, round(s * SIDE / side)) for s in x.shape[-2:]]
        x = resize(x, size, antialias=True)
    times = max(1, SIDE // side)
    x = x.repeat_interleave(times, -2).repeat_interleave(times, -1).expand(3, -1, -1)
    return (x.movedim(0, -1).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
