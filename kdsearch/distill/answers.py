"""The teacher's answers on base views that come back: asked for once, looked up by place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kdsearch.augment.bases import Base
from kdsearch.augment.fixed import FixedTransform
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import full_precision, generator, own_generators, seed_everything
from kdsearch.core.memory import GIB, available_bytes
from kdsearch.core.values import Draw, Outputs, to_device
from kdsearch.data.batches import augments_itself, batches_in_order, first_batch
from kdsearch.data.items import MapStyle, length
from kdsearch.distill.phase import Phase
from kdsearch.networks.teachers import Teacher

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
        """Drawn by a seed.

        Raises:
            KdsearchError: they do not fit into memory.
        """
        check_room(base, per_image, images)
        return Versions(base, per_image, base.draw(images * per_image, generator(seed, "base versions")))


def check_room(base: Base, per_image: int, images: int, share: float = 1.0) -> None:
    """Do versions fit into a share of the host's memory, where draws are kept?

    Raises:
        KdsearchError: they do not; with how many do.
    """
    each, room = _bytes_of(base.draw(1, generator("room"))) * images, available_bytes("cpu")
    if room is not None and per_image * each > share * room:
        most = int(share * room / each)
        raise KdsearchError(
            f"base_versions: {per_image:,} of each of {images:,} images take {per_image * each / GIB:.1f} GiB; "
            f"allowed: {f'up to {most}' if most else 'None'}"
        )


def _bytes_of(draw: Draw) -> int:
    return sum(value.nbytes for value in vars(draw).values() if isinstance(value, Tensor))


@dataclass(frozen=True)
class AnswerTable:
    """What a teacher says of every base view, (N * R, ...): row `id * R + version`, R = 1 for images as they are."""

    outputs: Outputs

    def at(self, rows: Tensor) -> Outputs:
        """Some rows (b,), known on the host: nothing waits for the device."""
        return self.outputs.rows(to_device(rows, self.outputs.logits.device))


@dataclass
class AnswerTables:
    """Whether answers are looked up in the runs of one teacher on one data set, and the tables that runs share.

    Args:
        allowed: False makes no table, True those that are asked for, whatever memory is left. None decides, at the
            first phase whose base views come back, for all that follow.
        runs: That share a table.
        kept: Tables that are kept for the next run, those that were used last.
        reserved: Bytes on the device that no table takes.
    """

    allowed: bool | None = None
    runs: int = 1
    kept: int = 2  # a study's own, and that of the seed that is confirmed
    reserved: int = 0
    reason: str | None = None  # why there is none, in words
    _kept: list[tuple[tuple[object, ...], AnswerTable]] = field(default_factory=list, repr=False)

    def decide(self, phase: Phase, teacher: Teacher, data: MapStyle, device: str) -> bool:
        """Are answers looked up?

        Args:
            phase: One whose base views come back.
        """
        if self.allowed is None:
            lookups = phase.epochs * phase.steps * phase.batch * self.runs
            room = available_bytes(device)
            most = None if room is None else SHARE * max(0, room - self.reserved)
            self.reason = _obstacle(phase, teacher, data, device, lookups, most)
            self.allowed = self.reason is None
        return self.allowed

    def find(
        self, ask: Ask, data: MapStyle, versions: Versions | None, key: tuple[object, ...], device: str
    ) -> AnswerTable:
        """The table of all base views, made if it is not there yet.

        Args:
            key: What else it depends on, compared by identity or value: the teacher, its precision, its layers.
        """
        drawn = (versions.base, versions.per_image, versions.draw.seeds) if versions else (None, 1, None)
        whole = (data, *key, device, *drawn)
        for place, (kept, table) in enumerate(self._kept):
            if all(_same(a, b) for a, b in zip(kept, whole, strict=True)):
                self._kept.append(self._kept.pop(place))
                return table
        del self._kept[: max(0, len(self._kept) + 1 - self.kept)]  # before there is one more
        made = ask_all(ask, data, versions, device)
        if self.kept:
            self._kept.append((whole, made))
        return made


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    plain = isinstance(one, str | int | tuple)
    return one == other if plain else one is other


@torch.inference_mode(False)
@torch.no_grad()
def ask_all(ask: Ask, data: MapStyle, versions: Versions | None, device: str) -> AnswerTable:
    """Ask about every base view, in the order of ids and versions, always as many at once."""
    rows = len(data) * (versions.per_image if versions else 1)
    answers: dict[tuple[str, str], Tensor] = {}
    done = 0
    with own_generators(device):
        for images in _base_views(data, versions, device):
            found = _by_name(ask(images))
            if not done:
                answers = {name: t.new_empty(rows, *t.shape[1:]) for name, t in found.items()}
            answers = {name: whole for name, whole in answers.items() if name in found}
            for name, whole in answers.items():  # a copy, as a network may write over what it gave
                whole[done : done + len(images)] = found[name]
            done += len(images)
    features, extras = (
        {name: t for (kind, name), t in answers.items() if kind == wanted} for wanted in ("features", "extras")
    )
    return AnswerTable(Outputs(answers["", "logits"], features, extras))


def _by_name(outputs: Outputs) -> dict[tuple[str, str], Tensor]:
    """All tensors of answers, each (B, ...)."""
    named = {(kind, name): t for kind in ("features", "extras") for name, t in getattr(outputs, kind).items()}
    return {("", "logits"): outputs.logits, **named}


def _base_views(data: MapStyle, versions: Versions | None, device: str) -> Iterator[Tensor]:
    """All of them in the order of the table's rows, `AT_ONCE` at a time."""
    batches = batches_in_order(data, AT_ONCE, device)
    if versions is None:
        yield from (batch.images for batch in batches)
        return
    left: Tensor | None = None
    for batch in batches:
        images = torch.arange(len(batch)).repeat_interleave(versions.per_image)
        rows = (batch.ids[:, None] * versions.per_image + torch.arange(versions.per_image)).flatten()
        for part, index in zip(rows.split(AT_ONCE), images.split(AT_ONCE), strict=True):
            views = versions.base.augment(versions.draw.rows(part), batch.images[to_device(index, device)]).images
            left = views if left is None else torch.cat([left, views])
            while len(left) >= AT_ONCE:
                yield left[:AT_ONCE]
                left = left[AT_ONCE:]
    if left is not None and len(left):
        yield left


@torch.inference_mode(False)
@torch.no_grad()
def _obstacle(
    phase: Phase, teacher: Teacher, data: MapStyle, device: str, lookups: int, most: float | None
) -> str | None:
    """Why the teacher's answers cannot be looked up, or had better not, in words; None where they can. Cheapest first.

    Args:
        lookups: Of base views, in all runs.
        most: Bytes that a table may take; None for any.
    """
    rows = length(data) * (phase.base_versions or 1)
    if rows > lookups:
        return f"{rows:,} base views are more than the {lookups:,} that are looked up"
    with own_generators(device), full_precision():
        images = first_batch(data, TRIED, device).images
        if isinstance(phase.base, FixedTransform):
            draw = phase.base.draw(len(images), generator("tried"))
            once, twice = (phase.base.augment(draw, images).images for _ in range(2))
            if not torch.equal(once, twice):
                return "the base's transform draws otherwise when it is seeded alike"
        some = images[: max(1, len(images) // 2)]
        try:
            seed_everything(0)
            answers = teacher(images, phase.teacher_layers)
            seed_everything(1)
            again, fewer = (teacher(given, phase.teacher_layers) for given in (images, some))
            turned = teacher(images.flip(0), phase.teacher_layers)
        except KdsearchError as error:  # which a step raises too, unless it asks in batches that the teacher can take
            return f"the teacher cannot be asked in batches of another size: {error}"
    if _differ(answers, again):
        return "the teacher answers the same images otherwise when it is asked again"
    order = to_device(torch.arange(len(images)).flip(0), images.device)
    if _differ(answers.rows(order), turned) or _differ(answers.rows(slice(len(some))), fewer):
        return "the teacher's answers depend on the other images of a batch"
    needed = rows * sum(t.nbytes for t in _by_name(answers).values()) / len(images)
    if most is not None and needed > most:
        room = f"{needed / GIB:.1f} GiB, and a table may take {most / GIB:.1f}"
        return f"the teacher's answers on {rows:,} base views do not fit into memory: they take {room}"
    if augments_itself(data, list(range(len(data)))):
        return "items of the data set are others each time they are read"
    return None


def _differ(one: Outputs, other: Outputs) -> bool:
    """Are answers others beyond rounding?"""
    others = _by_name(other)
    return any(_far(t, others[name]) for name, t in _by_name(one).items() if name in others)


def _far(one: Tensor, other: Tensor) -> bool:
    one, other = one.float(), other.float()
    finite = one[one.isfinite()].abs()
    near = ROUNDING * max(1.0, finite.max().item() if len(finite) else 0.0)
    return bool(((one - other).abs() > near).any())  # of what is not finite a run tells
