"""What a run measures: each epoch, and each step of the policy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from kdsearch.augment.policy import Policy
from kdsearch.core.maths import noise_scale


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch measured; NaN where nothing was measured.

    Training steps see base views, which are the images as they are where the base is None, and second views;
    search-validation is measured on images as they are, whatever the base.
    """

    epoch: int  # from 1
    progress: float  # share of the phase's student steps done
    supervised_loss: float  # nats, mean over the views that get it
    distillation_loss: float  # weighted sum of the losses, each as it defines itself, mean over the views that get it
    losses: Mapping[str, float]  # each of them by its name, without its weight
    accuracy: float  # of the student on search-validation
    accuracy_se: float  # binomial standard error
    value: float  # of the study's metric on search-validation; larger is better
    value_se: float  # standard error
    learning_rate: float
    policy_steps: int
    policy_objective: float  # nats, without prior and floor, on the second views of policy steps
    policy_prior: float  # nats, the strength times the distance from the prior
    teacher_accuracy: float  # on the second views
    teacher_clean_accuracy: float  # on the base views
    floor_violation: float  # nats of the teacher on the second views of policy steps, over the floor and its
    # cross-entropy on training images as they are, so that what the base view costs counts too; NaN: no floor
    dual: float  # weight of the floor
    emptied: float  # share of second views with under a tenth of the base view's deviation
    saturated: float  # share of second views with nearly all values at 0 or 1, where the base view has not
    gates_at_bound: int  # probabilities that freezing writes as 0 or 1
    ranges_at_limit: int  # ranges whose upper end is at the limit
    gradient_norm: float  # of the mean gradient of the policy over the epoch, its prior included
    noise_scale: float  # images: about the batch from which on a policy step is more signal than noise
    seconds: float
    largest_answer: float = math.nan  # share of search-validation that gets the student's most frequent answer
    inherited: float = math.nan  # inherited competence, at a glance; see `probe.inheritance`
    inherited_se: float = math.nan  # standard error, clustered by image
    calibration_error: float = math.nan  # of the student, expected, on the views of the glance
    kl: float = math.nan  # mean KL(teacher || student) on them, nats
    student_images: int = 0  # that the student answered on in the steps of the epoch, those of policy steps too
    teacher_images: int = 0  # likewise; answers that are looked up are none


class PolicyStep(NamedTuple):
    """What one policy step measured."""

    objective: float  # mean, nats, without prior and floor
    prior: float  # nats, weighted
    violation: float  # of the floor, nats
    gradient: Tensor  # by all numbers of the policy that learn


def summarise_policy_steps(policy: object, steps: Sequence[PolicyStep], batch: int) -> dict[str, Any]:
    """What an epoch's policy steps say together; `batch` is the number of images of one."""
    gates, ranges = policy.at_bounds() if isinstance(policy, Policy) else ([], [])
    norm, noise = noise_scale([step.gradient for step in steps], batch)
    return {
        "policy_steps": len(steps),
        "policy_objective": _mean([step.objective for step in steps]),
        "policy_prior": _mean([step.prior for step in steps]),
        "floor_violation": _mean([step.violation for step in steps]),
        "gates_at_bound": len(gates),
        "ranges_at_limit": len(ranges),
        "gradient_norm": norm,
        "noise_scale": noise,
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
