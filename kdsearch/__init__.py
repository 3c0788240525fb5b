"""kdsearch: which augmentation policy makes this student learn most from this teacher?

The public names, imported when first used: `import kdsearch` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdsearch.analysis.compare import paired_differences as paired_differences
    from kdsearch.analysis.diff import policy_diff as policy_diff
    from kdsearch.analysis.frames import frames as frames
    from kdsearch.analysis.frames import policy_frame as policy_frame
    from kdsearch.analysis.regions import regions as regions
    from kdsearch.analysis.report import write_report as write_report
    from kdsearch.analysis.sheet import policy_sheet as policy_sheet
    from kdsearch.augment.export import export_policy as export_policy
    from kdsearch.augment.fixed import FixedTransform as FixedTransform
    from kdsearch.augment.operations import OPERATIONS as OPERATIONS
    from kdsearch.augment.operations import apply as apply
    from kdsearch.augment.policy import Policy as Policy
    from kdsearch.augment.policy import random_resized_crop as random_resized_crop
    from kdsearch.augment.policy import trivial as trivial
    from kdsearch.augment.spec import PolicySpec as PolicySpec
    from kdsearch.augment.wide import trivial_augment_wide as trivial_augment_wide
    from kdsearch.commands.rank import rank as rank
    from kdsearch.commands.search import Result as Result
    from kdsearch.commands.search import search as search
    from kdsearch.core.errors import KdsearchError as KdsearchError
    from kdsearch.core.values import Batch as Batch
    from kdsearch.core.values import Draw as Draw
    from kdsearch.core.values import Outputs as Outputs
    from kdsearch.core.values import ViewBatch as ViewBatch
    from kdsearch.data.batches import ArrayData as ArrayData
    from kdsearch.data.batches import digits as digits
    from kdsearch.data.batches import in_memory as in_memory
    from kdsearch.data.batches import placed as placed
    from kdsearch.data.batches import shuffled as shuffled
    from kdsearch.data.folders import image_folder as image_folder
    from kdsearch.data.folders import load_arrays as load_arrays
    from kdsearch.data.images import load_images as load_images
    from kdsearch.data.images import photographs as photographs
    from kdsearch.distill.distiller import Distiller as Distiller
    from kdsearch.distill.estimators import policy_gradient as policy_gradient
    from kdsearch.distill.phase import Phase as Phase
    from kdsearch.distill.phase import PolicySteps as PolicySteps
    from kdsearch.distill.views import VIEWS as VIEWS
    from kdsearch.distill.views import Views as Views
    from kdsearch.losses import LOSSES as LOSSES
    from kdsearch.losses import Loss as Loss
    from kdsearch.losses import Projections as Projections
    from kdsearch.losses import Ramp as Ramp
    from kdsearch.losses import attention_transfer as attention_transfer
    from kdsearch.losses import class_correlation as class_correlation
    from kdsearch.losses import decoupled as decoupled
    from kdsearch.losses import hint as hint
    from kdsearch.losses import normalised_features as normalised_features
    from kdsearch.losses import relational_angles as relational_angles
    from kdsearch.losses import relational_distances as relational_distances
    from kdsearch.losses import similarity_preserving as similarity_preserving
    from kdsearch.losses import soft_targets as soft_targets
    from kdsearch.losses import standardised as standardised
    from kdsearch.losses.objectives import OBJECTIVES as OBJECTIVES
    from kdsearch.losses.objectives import TST as TST
    from kdsearch.losses.objectives import objective as objective
    from kdsearch.networks.convnets import cifar_resnet as cifar_resnet
    from kdsearch.networks.convnets import small_convnet as small_convnet
    from kdsearch.networks.ensemble import Ensemble as Ensemble
    from kdsearch.networks.outputs import tapped as tapped
    from kdsearch.networks.teachers import Recipe as Recipe
    from kdsearch.networks.teachers import Teacher as Teacher
    from kdsearch.networks.weights import load_weights as load_weights
    from kdsearch.networks.weights import torchvision_model as torchvision_model
    from kdsearch.networks.wrappers import Normalised as Normalised
    from kdsearch.probe.disagreement import Probe as Probe
    from kdsearch.probe.evaluation import evaluate as evaluate
    from kdsearch.probe.scores import Baseline as Baseline
    from kdsearch.probe.scores import Score as Score
    from kdsearch.probe.scores import score as score
    from kdsearch.study.space import SearchSpace as SearchSpace
    from kdsearch.study.study import Budget as Budget
    from kdsearch.study.study import Study as Study
    from kdsearch.tasks import Classification as Classification
    from kdsearch.tasks import Task as Task

    __version__: str

_WHERE = {
    "distill.phase": ["Phase", "PolicySteps"],
    "analysis.compare": ["paired_differences"],
    "analysis.diff": ["policy_diff"],
    "analysis.frames": ["frames", "policy_frame"],
    "analysis.regions": ["regions"],
    "analysis.sheet": ["policy_sheet"],
    "data.batches": ["ArrayData", "digits", "in_memory", "placed", "shuffled"],
    "probe.disagreement": ["Probe"],
    "distill.distiller": ["Distiller"],
    "distill.estimators": ["policy_gradient"],
    "probe.evaluation": ["evaluate"],
    "core.errors": ["KdsearchError"],
    "augment.export": ["export_policy"],
    "augment.fixed": ["FixedTransform"],
    "data.folders": ["image_folder", "load_arrays"],
    "data.images": ["load_images", "photographs"],
    "commands.search": ["Result", "search"],
    "losses": [
        "LOSSES",
        "Loss",
        "Projections",
        "Ramp",
        "attention_transfer",
        "class_correlation",
        "decoupled",
        "hint",
        "normalised_features",
        "relational_angles",
        "relational_distances",
        "similarity_preserving",
        "soft_targets",
        "standardised",
    ],
    "networks.ensemble": ["Ensemble"],
    "networks.outputs": ["tapped"],
    "networks.wrappers": ["Normalised"],
    "losses.objectives": ["OBJECTIVES", "TST", "objective"],
    "augment.operations": ["OPERATIONS", "apply"],
    "augment.policy": ["Policy", "random_resized_crop", "trivial"],
    "commands.rank": ["rank"],
    "analysis.report": ["write_report"],
    "networks.convnets": ["cifar_resnet", "small_convnet"],
    "probe.scores": ["Baseline", "Score", "score"],
    "study.space": ["SearchSpace"],
    "augment.spec": ["PolicySpec"],
    "study.study": ["Budget", "Study"],
    "tasks": ["Classification", "Task"],
    "networks.teachers": ["Recipe", "Teacher"],
    "core.values": ["Batch", "Draw", "Outputs", "ViewBatch"],
    "distill.views": ["VIEWS", "Views"],
    "networks.weights": ["load_weights", "torchvision_model"],
    "augment.wide": ["trivial_augment_wide"],
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes longer than all the rest of this module

        return version("kdsearch")
    if name not in _MODULE:
        raise AttributeError(f"module 'kdsearch' has no attribute '{name}'")
    return getattr(import_module(f"kdsearch.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
