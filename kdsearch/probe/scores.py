"""What a policy does to the answers of a teacher: scores that need no student."""

from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Outputs
from kdsearch.data.batches import batches_in_order
from kdsearch.data.items import MapStyle
from kdsearch.networks.teachers import Teacher
from kdsearch.tasks import Classification


class Estimate(NamedTuple):
    """A number and its standard error. Images are independent; the draws of one image are not."""

    value: float
    se: float


class Answers(NamedTuple):
    """What a teacher says of N images."""

    probabilities: Tensor  # (N, K), float64
    loss: Tensor  # (N,), cross-entropy in nats
    right: Tensor  # (N,), 0 or 1


@dataclass(frozen=True)
class Baseline:
    """A teacher, images, and its answers on them as they are: what the scores of all policies are relative to."""

    teacher: Teacher
    data: MapStyle
    task: Classification
    answers: Answers = field(repr=False)
    batch: int = 256  # images that the teacher sees at once
    device: torch.device | str = "cpu"

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        teacher: Teacher,
        data: MapStyle,
        task: Classification,
        *,
        batch: int = 256,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Run the teacher over a data set once.

        Raises:
            KdsearchError: fewer than two images; logits that are not finite.
        """
        if len(data) < 2:
            raise KdsearchError(f"scores: {len(data)} images; needed: 2 or more, for standard errors")
        parts = []
        for part in batches_in_order(data, batch, device):
            parts.append(_answers(teacher, part.images, part.target, task))
        return cls(teacher, data, task, _joined(parts), batch, device)


@dataclass(frozen=True)
class Score:
    """A policy by the teacher's answers on the images that it makes; every number with its standard error."""

    images: int
    views: int  # draws of the policy for each image
    floor: float | None  # nats; None for no floor
    stddev_ratio: Estimate  # to an identical second view, see `stddev_ratio`; NaN for a constant teacher
    agreement: Estimate  # share of views whose first choice is that on the image as it is
    teacher_loss_rise: Estimate  # of the cross-entropy over the same images as they are, nats
    teacher_loss: Estimate  # cross-entropy on the views, nats
    teacher_accuracy: Estimate
    teacher_confidence: Estimate  # largest probability
    teacher_entropy: Estimate  # nats

    @property
    def keeps_floor(self) -> bool:
        """Does the cross-entropy rise by no more than the floor? By the mean, whatever its error; NaN does not."""
        return self.floor is None or self.teacher_loss_rise.value <= self.floor


@torch.no_grad()
def score_policy(
    policy: Policy | FixedTransform | None,
    baseline: Baseline,
    *,
    views: int = 2,
    floor: float | None = None,
    seed: int = 0,
) -> Score:
    """Score a policy by a teacher alone, in a single pass over the data: its views of images as they are, over no base.

    Args:
        policy: None for a second view identical to the first.
        views: Draws of the policy for each image. Standard errors are over images, each the mean of its views.
        floor: How many nats the teacher's cross-entropy may rise.
        seed: Of the draws. They do not depend on the size of batches.

    Raises:
        KdsearchError: no view; logits that are not finite.
    """
    if views < 1:
        raise KdsearchError(f"scores: {views} views of each image; allowed: 1 or more")
    clean = baseline.answers
    seen = _look(policy, baseline, views, seed) if policy else [clean]
    probabilities = torch.stack([answers.probabilities for answers in seen])  # (V, N, K)
    loss = torch.stack([answers.loss for answers in seen])  # (V, N)
    confidence, choice = probabilities.max(2)
    return Score(
        images=len(clean.loss),
        views=views,
        floor=floor,
        stddev_ratio=stddev_ratio(clean.probabilities, probabilities),
        agreement=_mean((choice == clean.probabilities.argmax(1)).double()),
        teacher_loss_rise=_mean(loss - clean.loss),
        teacher_loss=_mean(loss),
        teacher_accuracy=_mean(torch.stack([answers.right for answers in seen])),
        teacher_confidence=_mean(confidence),
        teacher_entropy=_mean(torch.special.entr(probabilities).sum(2)),
    )


def stddev_ratio(clean: Tensor, views: Tensor) -> Estimate:
    """The teacher's standard deviation ("T. stddev") under a policy, relative to that under an identical second view.

    The paper averages the teacher's probabilities over sets of N images, each with its augmented view, and takes the
    standard deviation over sets, averaged over the K classes. For independent images that is about
    `sqrt((E|q|^2 - |E q|^2) / (K N))` with `q = (p(x) + p(x')) / 2`, which needs no sets; K and N are not in the ratio.
    `|E q|^2` is estimated over pairs of different images, without the bias of squaring a mean. The standard error is
    that of the delta method, paired: policy and identity see the same images. The paper's views share draws within a
    batch; these are drawn per image.

    Smaller means that the teacher is softer on augmented images, or contradicts what it says of the images themselves.
    The optimum is degenerate: a teacher that says the same of every view, because nothing is left to see, scores 1/2.
    Read it only beside a floor, such as one on the rise of the teacher's cross-entropy.

    Args:
        clean: Probabilities on the images as they are, (N, K), N at least 2.
        views: Probabilities on V views of each, (V, N, K).

    Returns:
        1 for views that are the images; NaN where `clean` does not vary.

    Reference:
        Wang et al., What makes a "good" data augmentation in knowledge distillation: a statistical perspective,
        NeurIPS 2022

    >>> clean = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> stddev_ratio(clean, clean[None]).value, stddev_ratio(clean, torch.full((1, 2, 2), 0.5)).value
    (1.0, 0.5)
    """
    v, influence = _variance((clean + views) / 2)
    v0, influence0 = _variance(clean[None])
    ratio = (v / v0).sqrt()
    return Estimate(ratio.item(), _mean(((influence - ratio**2 * influence0) / (2 * ratio * v0))[None]).se)


def _variance(q: Tensor) -> tuple[Tensor, Tensor]:
    """`E|q|^2 - |E q|^2` of (V, N, K) without bias, and what each image contributes, (N,), up to a constant."""
    deviation = q - q.mean((0, 1))
    contribution = deviation.square().sum(2).mean(0)
    error = deviation.mean(0).square().sum(1).mean() / (q.shape[1] - 1)  # of E q, squared
    return contribution.mean() + error, contribution


def _mean(values: Tensor) -> Estimate:
    """Of (V, N), over views and images; the standard error is over images."""
    images = values.mean(0)
    return Estimate(images.mean().item(), images.std().item() / len(images) ** 0.5)


def _look(policy: Policy | FixedTransform, baseline: Baseline, views: int, seed: int) -> list[Answers]:
    """The teacher's answers on each view of the images."""
    draws = [policy.draw(len(baseline.data), generator(seed, "scores", view)) for view in range(views)]
    parts: list[list[Answers]] = [[] for _ in draws]
    for batch in batches_in_order(baseline.data, baseline.batch, baseline.device):
        for draw, part in zip(draws, parts, strict=True):
            view = policy.augment(draw.rows(batch.ids), batch.images)
            target = baseline.task.follow(batch.target, view.matrix)
            part.append(_answers(baseline.teacher, view.images, target, baseline.task))
    return [_joined(part) for part in parts]


def _answers(teacher: Teacher, images: Tensor, target: Tensor, task: Classification) -> Answers:
    """On the host, in float64."""
    given = task.check(teacher(images), "teacher")
    outputs, target = Outputs(given.logits.cpu().double()), target.cpu()
    if not torch.isfinite(outputs.logits).all():
        raise KdsearchError("teacher: its logits are not finite on some images")
    right = task.correct(outputs, target).double()
    return Answers(outputs.logits.softmax(1), task.supervised(outputs, target), right)


def _joined(parts: list[Answers]) -> Answers:
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))
