"""What names were called before: each old one gets one sentence with the present one."""

import warnings
from collections.abc import Callable
from functools import wraps
from pkgutil import resolve_name
from typing import Any, TypeVar

from kdsearch.core.errors import KdsearchError

Kind = TypeVar("Kind", bound=type)
_MOVED = {
    "data": ["ArrayData", "digits", "image_folder", "in_memory", "load_arrays", "load_images", "shuffled"],
    "networks": [
        "Ensemble", "Normalised", "Teacher", "cifar_resnet", "load_weights", "small_convnet", "tapped",
        "torchvision_model",
    ],
    "losses": ["Projections", "Ramp", "ViewBatch"],
    "objectives": ["TST"],
    "operations": ["apply"],
    "presets": ["random_resized_crop", "trivial", "trivial_augment_wide"],
    "analysis": ["policy_diff", "policy_frame", "policy_sheet"],
    "probe.scores": ["Baseline", "Score"],
    "probe.disagreement": ["Probe"],
    "data.images": ["photographs"],
}  # fmt: skip
_OLD = {name: f"kdsearch.{home}.{name}" for home, names in _MOVED.items() for name in names} | {
    "LOSSES": "kdsearch.losses.TABLE",
    "OBJECTIVES": "kdsearch.objectives.TABLE",
    "OPERATIONS": "kdsearch.operations.TABLE",
    "VIEWS": "kdsearch.distill.views.VIEWS",
    "attention_transfer": "kdsearch.losses.features.at_loss",
    "class_correlation": "kdsearch.losses.relational.dist_loss",
    "decoupled": "kdsearch.losses.logits.dkd_loss",
    "export_policy": "kdsearch.export",
    "hint": "kdsearch.losses.features.hint_loss",
    "normalised_features": "kdsearch.losses.features.nfd_loss",
    "objective": "kdsearch.objectives.weighted_sum",
    "placed": "kdsearch.data.batches.place_data",
    "relational_angles": "kdsearch.losses.relational.rkd_angle_loss",
    "relational_distances": "kdsearch.losses.relational.rkd_distance_loss",
    "score": "kdsearch.probe.scores.score_policy",
    "similarity_preserving": "kdsearch.losses.relational.sp_loss",
    "soft_targets": "kdsearch.losses.logits.kd_loss",
    "standardised": "kdsearch.losses.logits.standardised_loss",
    "write_report": "kdsearch.report",
}
_CURES = {"VIEWS": "kdsearch.Views.named('tst')"}  # where the cure is not where the thing is


def find_old_name(name: str, stacklevel: int) -> Any:
    """What `kdsearch.NAME` was in the version before, with a warning that says what it is called now.

    Raises:
        AttributeError: it was nothing.
    """
    if name not in _OLD:
        raise AttributeError(f"module 'kdsearch' has no attribute '{name}'")
    cure = _CURES.get(name, _OLD[name])
    warnings.warn(f"kdsearch.{name} goes with the next version; it is {cure} now", FutureWarning, stacklevel)
    return resolve_name(_OLD[name])


def old_names(**now: str) -> Callable[[Kind], Kind]:
    """A class whose arguments or attributes were called otherwise: using an old name is an error that says the new one.

    >>> @old_names(workers="readers")
    ... class Wiring:
    ...     def __init__(self, readers=0):
    ...         self.readers = readers
    >>> Wiring(workers=2)
    Traceback (most recent call last):
    kdsearch.core.errors.KdsearchError: Wiring has no 'workers'; it is called 'readers' now
    """

    def decorate(kind: Kind) -> Kind:
        init = kind.__init__  # type: ignore[misc]

        @wraps(init)
        def checked(self: Any, *arguments: Any, **named: Any) -> None:
            if old := next((name for name in named if name in now), None):
                raise KdsearchError(f"{kind.__name__} has no '{old}'; it is called '{now[old]}' now")
            init(self, *arguments, **named)

        def get(self: Any, name: str) -> Any:
            if name not in now:
                return object.__getattribute__(self, name)  # for what went wrong, as in a property
            raise AttributeError(f"{kind.__name__} has no '{name}'; it is called '{now[name]}' now")

        vars_of: Any = kind
        vars_of.__init__, vars_of.__getattr__ = checked, get
        return kind

    return decorate
