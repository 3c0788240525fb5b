"""What a person should know of a learned policy before trusting it, in words."""

import math
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdsearch.augment.policy import Policy
from kdsearch.distill.records import EpochRecord

MOST_SPOILED = 0.05  # of the augmented images
LEAST_RIGHT = 0.5  # how far the teacher may fall on them; `rand_augment` costs it .38 on digits, and is hard to beat
MOST_VIOLATION = 0.1  # nats over the floor
ONE_ANSWER = 0.99  # share of the images, from which on a student answers one class
STALE = 0.05  # share of BatchNorm's running statistics that may be where they started


def policy_warnings(records: Sequence[EpochRecord], policy: Policy, clean_accuracy: float) -> tuple[str, ...]:
    """Of a policy that has learned, from the last epochs of its run; nothing where all is well.

    Args:
        clean_accuracy: Of the teacher on the training images as they are, for runs that use no base views.
    """
    record, found = records[-1], list[str]()
    if not sum(r.policy_steps for r in records):
        found.append("no policy step was taken: the policy is its unlearned start; more steps, or a shorter interval")
    clean, which = record.teacher_clean_accuracy, "base views"
    if math.isnan(clean):
        clean, which = clean_accuracy, "images as they are"
    violations = [r.floor_violation for r in records if not math.isnan(r.floor_violation)]
    if record.emptied + record.saturated > MOST_SPOILED:
        found.append(f"{record.emptied:.0%} of the augmented images are empty, {record.saturated:.0%} saturated")
    if record.teacher_accuracy < clean - LEAST_RIGHT:
        found.append(
            f"the teacher is right on {record.teacher_accuracy:.0%} of the augmented images, "
            f"on {clean:.0%} of the {which}"
        )
    if violations and violations[-1] > MOST_VIOLATION:
        found.append(f"the teacher's cross-entropy is {violations[-1]:.2f} nats over the floor")
    gates, ranges = policy.at_bounds()
    if gates:
        found.append(f"probabilities at 0 or 1: {', '.join(gates)}; a stronger prior keeps them off")
    if ranges:
        found.append(f"ranges at their limit: {', '.join(ranges)}; a higher limit lets them go on")
    return tuple(found)


def chance_evidence(
    record: EpochRecord, labels: Sequence[int], names: Sequence[str], *, by_accuracy: bool
) -> str | None:
    """What shows that a student has learned nothing, as what is said of it; None where it has, or nobody knows.

    Its accuracy is within two standard errors of chance, or it answers one class, and the labels are several. Chance is
    the share of the most frequent label; where trials are compared by something else than accuracy, which a student of
    rare classes may give up for it, 1 / K.

    Args:
        record: Of the last epoch.
        labels: How often each label is on search-validation.
        names: Of the classes.
    """
    count = sum(labels)
    if not count:
        return None
    share = max(labels) / count
    chance = share if by_accuracy else 1 / len(names)
    if record.accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / count):
        name = names[max(range(len(labels)), key=labels.__getitem__)]
        if by_accuracy:
            return f"is not better than always answering '{name}' ({100 * share:.1f} %)"
        return f"is right on {100 * record.accuracy:.1f} % of search-validation, and chance is {100 * chance:.1f} %"
    if share < ONE_ANSWER <= record.largest_answer:
        return f"answers one class for {100 * record.largest_answer:.1f} % of search-validation"
    return None


def chance_reasons(student: nn.Module, steps: int, batch: int) -> str:
    """Likely reasons for a student that has learned nothing.

    Args:
        steps, batch: Of its training, and images of each.
    """
    found = [f"the budget is short ({steps} student steps of {batch} images)", "the optimizer's learning rate"]
    left = [(1 - m.momentum) ** steps for m in student.modules()
            if isinstance(m, _BatchNorm) and m.running_mean is not None and m.momentum is not None]  # fmt: skip
    if max(left, default=0.0) > STALE:
        found.insert(1, f"BatchNorm's running statistics are {max(left):.0%} where they started (raise its momentum)")
    return f"likely reasons: {', '.join(found)}"
