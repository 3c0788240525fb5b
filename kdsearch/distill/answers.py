"""The teacher's answers on base views that come back: asked for once, looked up by place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kdsearch.augment.bases import Base
from kdsearch.core.maths import generator, own_generators, seed_everything
from kdsearch.core.memory import available_bytes
from kdsearch.core.values import Draw, Outputs, to_device
from kdsearch.data.batches import augments_itself, batches_in_order
from kdsearch.data.items import MapStyle

AT_ONCE = 256  # base views in one forward, always: the last digits of an answer may depend on how many there are
SHARE = 0.25  # of the memory at hand that a table may take
TRIED = 16  # images on which a teacher is asked twice
ROUNDING = 1e-4  # of the largest answer, by which answers to other batches may differ

Ask = Callable[[Tensor], Outputs]  # images (B, C, H, W) -> what the teacher says of them


class Versions(NamedTuple):
    """The base views of a data set of N images, each drawn R times for good."""

    base: Base
    per_image: int  # R
    draw: Draw  # of N * R rows, those of an image one after another

    @staticmethod
    def drawn(base: Base, per_image: int, images: int, seed: int) -> "Versions":
        """Drawn by a seed."""
        return Versions(base, per_image, base.draw(images * per_image, generator(seed, "base versions")))


@dataclass(frozen=True)
class AnswerTable:
    """What a teacher says of every base view, (N * R, ...): row `id * R + version`, R = 1 for images as they are."""

    outputs: Outputs

    def at(self, rows: Tensor) -> Outputs:
        """Some rows (b,), known on the host: nothing waits for the device."""
        return self.outputs.rows(to_device(rows, self.outputs.logits.device))


@dataclass
class AnswerTables:
    """The tables of a study, each made once and shared by its runs.

    Args:
        allowed: Decided before: False makes none, True makes those that are asked for whatever memory is left. None
            decides, at the first one.
        runs: That share a table.
        kept: Tables that are kept for the next run, the last ones.
    """

    allowed: bool | None = None
    runs: int = 1
    kept: int = 2  # a study's own, and that of the seed that is confirmed
    reason: str | None = None  # why there is none, in words
    _kept: list[tuple[tuple[object, ...], AnswerTable]] = field(default_factory=list, repr=False)

    def find(
        self, ask: Ask, data: MapStyle, versions: Versions | None, key: tuple[object, ...], visits: int, device: str
    ) -> AnswerTable | None:
        """The table of base views, made if it is not there yet; None where there is to be none.

        Args:
            key: What else it depends on, compared by identity or value: the teacher, its precision, its layers.
            visits: How often a run looks a base view up.
        """
        if self.allowed is False:
            return None
        whole = (
            data,
            *key,
            versions and versions.base,
            versions and versions.per_image,
            versions and versions.draw.seeds,
        )
        for kept, table in self._kept:
            if all(_same(a, b) for a, b in zip(kept, whole, strict=True)):
                return table
        rows = len(data) * (versions.per_image if versions else 1)
        most = None if self.allowed else SHARE * (available_bytes(device) or 0) or None
        self.reason = _obstacle(ask, data, device) or (
            f"{rows:,} base views are more than are looked up"
            if not self.allowed and rows > visits * self.runs
            else None
        )
        made = None if self.reason else ask_all(ask, data, versions, device, most)
        if made is None and not self.reason:
            self.reason = f"the teacher's answers on {rows:,} base views do not fit into memory"
        self.allowed = made is not None
        if made is not None and self.kept:
            self._kept = [*self._kept, (whole, made)][-self.kept :]
        return made


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    plain = isinstance(one, str | int | tuple)
    return one == other if plain else one is other


@torch.no_grad()
def ask_all(
    ask: Ask, data: MapStyle, versions: Versions | None, device: str, most: float | None = None
) -> AnswerTable | None:
    """Ask about every base view, in the order of ids and versions, always as many at once.

    Args:
        most: Bytes that the answers may take; None for any.

    Returns:
        None where they take more.
    """
    count = versions.per_image if versions else 1
    rows = len(data) * count
    parts: list[Outputs] = []
    with own_generators(device):
        for images in _base_views(data, versions, device):
            parts.append(ask(images).detach())
            if most is not None and rows / len(images) * _bytes(parts[0]) > most:
                return None
    return AnswerTable(Outputs.join(parts))


def _bytes(outputs: Outputs) -> int:
    return sum(t.nbytes for t in (outputs.logits, *outputs.features.values(), *outputs.extras.values()))


def _base_views(data: MapStyle, versions: Versions | None, device: str) -> Iterator[Tensor]:
    """All of them in the order of the table's rows, `AT_ONCE` at a time."""
    left: Tensor | None = None
    for batch in batches_in_order(data, AT_ONCE, device):
        views = batch.images
        if versions:
            rows = (batch.ids[:, None] * versions.per_image + torch.arange(versions.per_image)).flatten()
            each = torch.arange(len(batch)).repeat_interleave(versions.per_image)
            for part, index in zip(rows.split(AT_ONCE), each.split(AT_ONCE), strict=True):
                views = versions.base.augment(versions.draw.rows(part), batch.images[to_device(index, device)]).images
                left = views if left is None else torch.cat([left, views])
                while len(left) >= AT_ONCE:
                    yield left[:AT_ONCE]
                    left = left[AT_ONCE:]
        else:
            yield views
    if left is not None and len(left):
        yield left


@torch.no_grad()
def _obstacle(ask: Ask, data: MapStyle, device: str) -> str | None:
    """Why the teacher's answers cannot be looked up, in words; None where they can."""
    if augments_itself(data, list(range(len(data)))):
        return "items of the data set are others each time they are read"
    with own_generators(device):
        batch = next(batches_in_order(data, TRIED, device))
        order = torch.arange(len(batch)).flip(0)
        seed_everything(0)
        here = ask(batch.images).logits
        seed_everything(1)
        again = ask(batch.images).logits
        turned = ask(batch.images[to_device(order, device)]).logits.flip(0)
        fewer = ask(batch.images[: max(1, len(batch) // 2)]).logits
    near = ROUNDING * here.abs().max().clamp(min=1.0)
    if (here - again).abs().max() > near:
        return "the teacher answers the same images otherwise when it is asked again"
    if (here - turned).abs().max() > near or (here[: len(fewer)] - fewer).abs().max() > near:
        return "the teacher's answers depend on the other images of a batch"
    return None
