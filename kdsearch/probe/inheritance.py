"""Inherited competence: of the shifted images on which the teacher is right, the share on which the student is right.

Measured on search-validation by the fixed list of `shifts`. An operation is looked at in bins of its magnitude; a bin
in which the teacher is right on less than half of the images has little to hand over and does not count. Each operation
counts the same; the number is the mean of that of the common operations and that of the held-out shifts.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdsearch.core.errors import KdsearchError, problems, wrong_integers
from kdsearch.core.maths import generator, own_generators, usual_modes
from kdsearch.core.values import Batch, Outputs
from kdsearch.data.batches import batches_at, first_batch
from kdsearch.data.items import MapStyle, length
from kdsearch.losses.logits import kd_loss
from kdsearch.networks.factories import check_network
from kdsearch.networks.outputs import run_network
from kdsearch.networks.teachers import Teacher, evaluation_mode
from kdsearch.probe.evaluation import home_of, moved
from kdsearch.probe.shifts import BINS, COMMON, FILL, HELD_OUT, VERSION, Shifts
from kdsearch.tasks import Classification

IMAGES, GLANCED = 500, 150  # of a data set, and of those at a glance: the same whatever a run costs
LEAST_RIGHT = 0.5  # of the images of a bin, by the teacher, for it to count
PER_IMAGE = 8  # views of an image in a glance
CONFIDENCES = 15  # bins of the calibration error
AT_ONCE = 256  # images of a forward
ROOM = 2**28  # bytes, for the images of a glance, and for the teacher's answers


@dataclass(frozen=True)
class Inheritance:
    """What a student does on shifted images; NaN where it is undefined, as where the teacher is never right."""

    inherited: float = math.nan  # inherited competence: the mean of `common` and `held_out`, or the one there is
    inherited_se: float = math.nan  # standard error, clustered by image
    common: float = math.nan  # of the common operations, each the same
    held_out: float = math.nan  # of the shifts that the study's space has not, each the same
    clean: float = math.nan  # of the images as they are
    calibration_error: float = math.nan  # expected, of the student on the views that count
    teacher_calibration_error: float = math.nan
    kl: float = math.nan  # mean KL(teacher || student) on them, nats at temperature 1
    images: int = 0
    views: int = 0  # that count
    by_shift: Mapping[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  # held-out shifts that the study's space has
    version: int = VERSION  # of the list of shifts


class Seen(NamedTuple):
    """What both networks do on views of n images, on the host: (n, J) each, a column a shift."""

    teacher: Tensor  # bool: right?
    student: Tensor
    teacher_confidence: Tensor  # of the first choice, a share
    confidence: Tensor  # of the student's
    kl: Tensor  # nats

    @classmethod
    def nothing(cls, images: int, columns: int) -> "Seen":
        kinds = (torch.bool, torch.bool, torch.float64, torch.float64, torch.float64)
        return cls(*(torch.zeros(images, columns, dtype=kind) for kind in kinds))


class _Bank(NamedTuple):
    """The views of a glance, kept."""

    batch: Batch  # V views
    row: Tensor  # (V,) int64, the place of the image among those looked at
    column: Tensor  # (V,) int64, of the shift
    teacher: Tensor  # its logits, (V, K)


class Ruler:
    """The same shifted images for every student, with the teacher's answers remembered where there is room.

    Each image has one view of each shift. A glance, cheap enough for every epoch, has up to 8 of those views that
    count, 4 of them held-out shifts. What is looked at is fixed by the data, the teacher, the seed and these numbers.

    Args:
        teacher: A `Teacher`, or any network.
        data: Images of 1 or 3 channels.
        task: A classification with as many classes as there are logits where None.
        known: Operations that a student may have trained with: held-out shifts among them are left out.
        images: At most so many of the data set, random ones.
        glanced: At most so many of these in a glance, and no more than fit into 256 MiB.
        device: Where it runs; where the teacher is, if None. A student that is elsewhere goes there and comes back.

    Raises:
        KdsearchError: an empty data set, other channels, numbers under 1.
    """

    def __init__(
        self,
        teacher: Teacher | nn.Module,
        data: MapStyle,
        task: Classification | None = None,
        *,
        known: Iterable[str] = (),
        images: int = IMAGES,
        glanced: int = GLANCED,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if found := wrong_integers({"images": images, "glanced": glanced}, {"images": 1, "glanced": 1}):
            raise problems("ruler", found)
        if length(data) < 1:
            raise KdsearchError("ruler: the data set is empty")
        channels, *size = first_batch(data, 1).images.shape[1:]
        if channels not in FILL:
            raise KdsearchError(f"ruler: images of {channels} channels; allowed: {' or '.join(map(str, FILL))}")
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(check_network(teacher, "teacher"))
        self.data, self.seed = data, seed
        self.device = home_of(self.teacher.network, data) if device is None else torch.device(device)
        self.task = task or self._task_of_logits()
        self.left_out = tuple(name for name in HELD_OUT if name in {*known})
        order = torch.randperm(len(data), generator=generator(seed, "ruler"))
        self.places = order[:images]  # not in the order of the data: of fewer images each has the same views
        fit = ROOM // (PER_IMAGE * 4 * channels * math.prod(size))
        self.glanced = max(1, min(fit, glanced, len(self.places)))
        names = [name for name in (*COMMON, *HELD_OUT) if name not in self.left_out]
        self.shifts = Shifts.drawn(names, len(self.places), channels, seed)
        self._answers: Tensor | None = None  # the teacher's logits, (n, J, K)
        self._bank: _Bank | None = None

    def _task_of_logits(self) -> Classification:
        with torch.no_grad(), own_generators(self.device):
            logits = self.teacher(first_batch(self.data, 1, self.device).images).logits
        return Classification.of(logits.shape[1])

    def measure(self, student: nn.Module) -> Inheritance:
        """One student on all views; it and all generators stay as they were."""
        return self.measure_images(student)[0]

    @usual_modes()
    def measure_images(self, student: nn.Module) -> tuple[Inheritance, Tensor]:
        """The same, and what each image contributes: (n,), whose mean is inherited competence."""
        parts = []
        with self._looking_at(student):
            for views, teacher in self._views():
                compared = self._compare(student, views, teacher)
                parts.append([part.view(-1, len(self.shifts.names)) for part in compared])
        seen = Seen(*_joined(parts))
        clean = seen.student[:, 0][seen.teacher[:, 0]].double().mean().item()
        counts = self._count(seen.teacher)
        found = replace(sum_up(seen, counts, self.shifts.names), clean=clean, left_out=self.left_out)
        return found, found.inherited + len(counts) * _deviations(seen, counts, self.shifts.names)

    @usual_modes()
    def glance(self, student: nn.Module) -> Inheritance:
        """One student on 8 views of an image, which are kept; it and all generators stay as they were."""
        seen = Seen.nothing(len(self.places), len(self.shifts.names))
        with self._looking_at(student):
            if self._bank is None:
                self._bank = self._make_bank()
            batch, row, column, teacher = self._bank
            chunks = (slice(first, first + AT_ONCE) for first in range(0, len(batch), AT_ONCE))
            parts = [self._compare(student, batch.rows(rows), Outputs(teacher[rows])) for rows in chunks]
        for whole, part in zip(seen, _joined(parts), strict=False):
            whole[row, column] = part
        counts = torch.zeros_like(seen.teacher)
        counts[row, column] = True
        return replace(sum_up(seen, counts, self.shifts.names), left_out=self.left_out)

    @contextmanager
    def _looking_at(self, student: nn.Module) -> Iterator[None]:
        """A student where the ruler is, in evaluation mode, without gradients."""
        home = home_of(student, self.data)
        with torch.no_grad(), own_generators(self.device), moved(student, home, self.device), evaluation_mode(student):
            yield

    def count_views(self, epochs: int) -> int:
        """Views of a student that is measured after so many epochs, at a glance, and once on all."""
        return len(self.places) * len(self.shifts.names) + epochs * self.glanced * PER_IMAGE

    def _views(self) -> Iterator[tuple[Batch, Outputs]]:
        """All views of some images at a time, image by image, and the teacher's answers."""
        columns, start, new = len(self.shifts.names), 0, list[Tensor]()
        keeps = self._answers is None and 4 * len(self.places) * columns * len(self.task.class_names) <= ROOM
        for batch in batches_at(self.data, self.places.tolist(), max(1, AT_ONCE // columns), self.device):
            rows = slice(start, start := start + len(batch))
            images = self.shifts.apply(batch.images, rows).flatten(0, 1)
            known = None if self._answers is None else self._answers[rows].flatten(0, 1)
            teacher = self.teacher(images) if known is None else Outputs(known)
            if keeps:
                new.append(teacher.logits.view(-1, columns, teacher.logits.shape[1]))
            target, ids = (part.repeat_interleave(columns) for part in (batch.target, batch.ids))
            yield Batch(images, target, ids), teacher
        if keeps:
            self._answers = torch.cat(new)

    def _compare(self, student: nn.Module, batch: Batch, teacher: Outputs) -> list[Tensor]:
        """What both do on some views, (V,) each, as `Seen` has it, where the networks are."""
        own = self.task.check(run_network(student, batch.images, "student"), "student").to_float32()
        teacher = teacher.to_float32()
        kl = kd_loss(own.logits, teacher.logits, temperature=1.0)
        right = [self.task.correct(side, batch.target) for side in (teacher, own)]
        sure = [side.logits.softmax(1).amax(1) for side in (teacher, own)]
        return [*right, *sure, kl]

    def _count(self, teacher: Tensor) -> Tensor:
        """Which views count, (n, J) bool: those of bins in which the teacher, (n, J) bool, is right on half or more."""
        place = self.shifts.bin + BINS * torch.arange(teacher.shape[1])
        right, size = (
            place.flatten().bincount(weights, BINS * teacher.shape[1]) for weights in (teacher.flatten().double(), None)
        )
        counts = (right >= LEAST_RIGHT * size)[place]
        counts[:, 0] = False  # the image as it is
        return counts

    def _make_bank(self) -> _Bank:
        """Choose the views of a glance among those that count, and keep them."""
        rights = [self.task.correct(teacher, views.target) for views, teacher in self._views()]
        may = self._count(torch.cat(rights).cpu().view(-1, len(self.shifts.names)))
        may[self.glanced :] = False  # the order is random
        streams = (generator(self.seed, "ruler glance", name) for name in self.shifts.names)
        lot = torch.stack([torch.rand(len(may), generator=random) for random in streams], 1).masked_fill(~may, -1.0)
        for kind in (COMMON, HELD_OUT):
            columns = torch.tensor([j for j, name in enumerate(self.shifts.names) if name in kind], dtype=torch.int64)
            rank = lot[:, columns].argsort(1, descending=True).argsort(1)
            may[:, columns] &= rank < PER_IMAGE // 2
        row, column = may.nonzero(as_tuple=True)
        parts, start = [], 0
        for views, teacher in self._views():
            keep = may.flatten()[start : (start := start + len(views))].to(views.images.device)
            parts.append((views.images[keep], views.target[keep], teacher.logits[keep]))
        images, target, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return _Bank(Batch(images, target, self.places[row]), row, column, logits)


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Columns of several parts, one after another, brought to the host at once; numbers in double precision."""
    columns = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
    return [column.double() if column.is_floating_point() else column for column in columns]


def sum_up(seen: Seen, counts: Tensor, names: Sequence[str]) -> Inheritance:
    """Inherited competence of the views that count, with its standard error.

    A shift's is the sum over its views of "both right" by that of "the teacher right". The error is that of the ratio,
    linearised, of sums over the views of an image, since views of one image go together.

    Args:
        counts: (n, J) bool, of views.
        names: Of the J columns.

    Reference:
        Cochran, Sampling techniques, 1977 (the ratio estimator, clusters)

    >>> right, none = torch.ones(6, 2, dtype=torch.bool), torch.zeros(6, 2)
    >>> half = torch.tensor([[True, True]] * 3 + [[False, True]] * 3)
    >>> found = sum_up(Seen(right, half, none, none, none), right, ["rotate", "jpeg"])
    >>> found.common, found.held_out, found.inherited
    (0.5, 1.0, 0.75)
    """
    ratio, kinds = _ratios(seen, counts, names)
    means = torch.stack([ratio[kind].mean() for kind in kinds])
    by_image = _deviations(seen, counts, names)
    n, there = int(counts.any(1).sum()), any(kind.any() for kind in kinds)
    error = math.sqrt(n / (n - 1) * by_image.square().sum().item()) if n > 1 and there else math.nan
    return Inheritance(
        inherited=means.nanmean().item(),
        inherited_se=error,
        common=means[0].item(),
        held_out=means[1].item(),
        calibration_error=calibration_error(seen.confidence[counts], seen.student[counts]),
        teacher_calibration_error=calibration_error(seen.teacher_confidence[counts], seen.teacher[counts]),
        kl=seen.kl[counts].mean().item(),
        images=n,
        views=int(counts.sum()),
        by_shift={name: value for name, value in zip(names, ratio.tolist(), strict=True) if not math.isnan(value)},
    )


def _ratios(seen: Seen, counts: Tensor, names: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Of each shift "both right" by "the teacher right", (J,), NaN where it never is; which are common, which not."""
    total = (seen.teacher & counts).sum(0)
    ratio = (seen.teacher & seen.student & counts).sum(0).double() / total
    common = torch.tensor([name in COMMON for name in names])
    return ratio, [kind & (total > 0) for kind in (common, ~common)]


def _deviations(seen: Seen, counts: Tensor, names: Sequence[str]) -> Tensor:
    """What each image adds to the error of inherited competence, the ratios linearised: (n,), of sum 0."""
    ratio, kinds = _ratios(seen, counts, names)
    teacher, both = (seen.teacher & counts).double(), (seen.teacher & seen.student & counts).double()
    there = [kind.double() / kind.sum() for kind in kinds if kind.any()]
    weight = torch.stack(there).mean(0) if there else torch.zeros_like(ratio)
    return ((both - ratio.nan_to_num() * teacher) * weight / teacher.sum(0).clamp(min=1)).sum(1)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error, a share: 15 bins of equal width; NaN of no views.

    Args:
        confidence: (V,) of the first choice, a share.
        right: (V,) bool.

    Reference:
        Guo et al., On calibration of modern neural networks, ICML 2017

    >>> round(calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([True, False])), 3)
    0.4
    """
    if not len(confidence):
        return math.nan
    confidence = confidence.double().nan_to_num()
    place = (confidence * CONFIDENCES).long().clamp(0, CONFIDENCES - 1)
    gap = torch.zeros(CONFIDENCES, dtype=torch.float64).index_add_(0, place, right.double() - confidence)
    return gap.abs().sum().item() / len(confidence)
