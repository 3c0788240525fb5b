"""What a person should know of a learned policy before trusting it, in words."""

import math
from collections.abc import Sequence

from kdsearch.policy import Policy
from kdsearch.records import EpochRecord

MOST_SPOILED = 0.05  # of the augmented images
LEAST_RIGHT = 0.10  # how far the teacher may fall on them
MOST_VIOLATION = 0.1  # nats over the floor


def warnings(records: Sequence[EpochRecord], policy: Policy, clean_accuracy: float) -> tuple[str, ...]:
    """Of a policy that has learned, from the last epochs of its run; nothing where all is well.

    Args:
        clean_accuracy: Of the teacher on the training images, for runs that do not look at their base views.
    """
    record, found = records[-1], []
    clean = clean_accuracy if math.isnan(record.teacher_clean_accuracy) else record.teacher_clean_accuracy
    violations = [r.floor_violation for r in records if not math.isnan(r.floor_violation)]
    if record.emptied + record.saturated > MOST_SPOILED:
        found.append(f"{record.emptied:.0%} of the augmented images are empty, {record.saturated:.0%} saturated")
    if record.teacher_accuracy < clean - LEAST_RIGHT:
        found.append(
            f"the teacher is right on {record.teacher_accuracy:.0%} of the augmented images, "
            f"on {clean:.0%} of the clean ones"
        )
    if violations and violations[-1] > MOST_VIOLATION:
        found.append(f"the teacher's cross-entropy is {violations[-1]:.2f} nats over the floor")
    gates, ranges = policy.at_bounds()
    if gates:
        found.append(f"probabilities at 0 or 1: {', '.join(gates)}; a stronger prior keeps them off")
    if ranges:
        found.append(f"ranges at their limit: {', '.join(ranges)}; a higher limit lets them go on")
    return tuple(found)
