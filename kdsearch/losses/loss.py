"""What a distillation loss is, and what its entry in the table says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from kdsearch.core.errors import KdsearchError, problems, unknown_name, user_call
from kdsearch.core.old_names import old_names
from kdsearch.core.values import Outputs, ViewBatch

Function = Callable[[Outputs, Outputs, ViewBatch], Tensor]  # student, teacher, views -> (B,) or (B, *space)
Compare = Callable[[Tensor, Tensor, ViewBatch], Tensor]  # features of student and teacher, (B, ...) each -> (B,)
Pairs = Sequence[tuple[str, str]]  # module paths in student and teacher
Status = Literal["faithful", "paper form", "reconstruction"]


@dataclass(frozen=True)
class Ramp:
    """A weight that goes linearly from `first` to `last` over a share of a phase, and stays.

    >>> Ramp(0.0, 2.0, over=0.5)(0.25), Ramp(0.0, 2.0, over=0.5)(0.9)
    (1.0, 2.0)
    """

    first: float
    last: float
    over: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.over <= 1:
            raise KdsearchError(f"ramp: over {self.over:g}; allowed: more than 0, at most 1, a share of the phase")

    def __call__(self, progress: float) -> float:
        return self.first + (self.last - self.first) * min(1.0, progress / self.over)


@old_names(at="weight_at")
@dataclass(frozen=True)
class Loss:
    """A distillation loss: the outputs of student and teacher to one number per image or per point.

    It may look at the views themselves: their target, ids, pixels and where the policy moved them.

    Reduced by the task after weighting, never inside. One that is relational compares the images of a view with each
    other: it returns each image's share, whose mean is the loss.
    """

    name: str  # with its numbers, such as "kd, temperature 4"
    function: Function
    per: Literal["image", "point"] = "image"
    relational: bool = False
    pairs: tuple[tuple[str, str], ...] = ()  # module paths in student and teacher whose outputs it compares
    projects: bool = False  # needs as many channels in both: a learned projection brings the student's to the teacher's
    weight: float | Ramp = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        """(B,) or (B, *space), in float32 or more; no gradient reaches the teacher.

        Raises:
            KdsearchError: it fails, or gave something else than one number per image or point.
        """
        with user_call(f"loss {self.name}"):
            values = self.function(student.to_float32(), teacher.to_float32().detach(), views)
        size = len(student.logits)
        if not isinstance(values, Tensor):
            raise KdsearchError(f"loss {self.name}: it gave {type(values).__name__}; allowed: a tensor ({size},)")
        if values.ndim < 1 or len(values) != size or (values.ndim > 1 and self.per == "image"):
            wanted = f"({size},)" if self.per == "image" else f"({size}, *space)"
            raise KdsearchError(f"loss {self.name}: it gave {tuple(values.shape)}; allowed: {wanted}, not reduced")
        return values

    def times(self, weight: float | Ramp) -> "Loss":
        """The same loss with another weight."""
        return replace(self, weight=weight)

    def weight_at(self, progress: float) -> float:
        """The weight at a share of the phase."""
        return self.weight(progress) if isinstance(self.weight, Ramp) else self.weight


@dataclass(frozen=True)
class Kind:
    """One entry of the table: makes losses, and says what they are and where they come from."""

    name: str
    make: Callable[..., Loss]
    says: str  # the formula, short
    status: Status  # as in the authors' code but for guards and weights; as in the paper; or our reading of it
    reference: str
    compares: Literal["logits", "features"] = "logits"  # features: made from module paths
    relational: bool = False  # does an image's share depend on the other images of its view?

    def __call__(self, *arguments: Any, **settings: Any) -> Loss:
        return self.make(*arguments, **settings)


def feature_loss(
    name: str, compare: Compare, student: str | None, teacher: str | None, pairs: Pairs, *, projects: bool = False
) -> Loss:
    """A loss on features: the sum of `compare` over one pair of module paths, or several.

    Args:
        student: Module path in the student, of one pair.
        teacher: Module path in the teacher; the student's by default.
        projects: Compare what a projection made of the student's features, where there is one for the pair.

    Raises:
        KdsearchError: no pair; when called, features that are missing or cannot be compared.
    """
    given = [*([] if student is None else [(student, student if teacher is None else teacher)]), *pairs]
    if not given:
        raise KdsearchError(
            f"{name}: no pair of layers; allowed: module paths in student and teacher, such as "
            f'kdsearch.losses.{name}("layer2", "layer3"), or pairs=[("layer2", "layer3"), ...]'
        )

    def loss(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        missing = [("student", s) for s, _ in given if s not in student.features]
        missing += [("teacher", t) for _, t in given if t not in teacher.features]
        if missing:
            known = {"student": student.features, "teacher": teacher.features}
            raise problems(name, [unknown_name(f"features of the {who}", path, known[who]) for who, path in missing])
        own = {
            (s, t): student.features.get(projected_name(s, t) if projects else s, student.features[s]) for s, t in given
        }
        return _sum(name, compare, [(s, own[s, t], t, teacher.features[t]) for s, t in given], views)

    named = "; ".join(projected_name(s, t) for s, t in given)
    return Loss(f"{name}, {named}", loss, pairs=tuple(given), projects=projects)


def projected_name(student: str, teacher: str) -> str:
    """The name under which a student's features stand that were projected for a layer of the teacher."""
    return f"{student} to {teacher}"


def check_temperature(name: str, temperature: float) -> None:
    """A temperature is a positive number.

    Raises:
        KdsearchError: it is not above 0.
    """
    if not temperature > 0:
        raise KdsearchError(f"{name}: temperature {temperature:g}; allowed: above 0")


def _sum(name: str, compare: Compare, given: list[tuple[str, Tensor, str, Tensor]], views: ViewBatch) -> Tensor:
    """Of one comparison over pairs of features; an error names the paths and shapes of its pair."""
    parts = []
    for student_path, student, teacher_path, teacher in given:
        try:
            parts.append(compare(student, teacher, views))
        except KdsearchError as error:
            raise KdsearchError(
                f"{name}: student '{student_path}' {tuple(student.shape)}, "
                f"teacher '{teacher_path}' {tuple(teacher.shape)}: {error}"
            ) from None
    return sum(parts[1:], parts[0])
