"""The table of distillation losses."""

from collections.abc import Mapping

from kdsearch.losses import features, logits, relational
from kdsearch.losses.features import attention_transfer, hint, normalised_features
from kdsearch.losses.logits import decoupled, soft_targets, standardised
from kdsearch.losses.loss import Kind, Loss, Ramp
from kdsearch.losses.projection import Projections
from kdsearch.losses.relational import (
    class_correlation,
    relational_angles,
    relational_distances,
    similarity_preserving,
)

__all__ = [
    "LOSSES",
    "Kind",
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
]

_KINDS = (
    Kind(
        "kd",
        logits.kd,
        "T^2 KL(p_T || p_S)",
        "paper form",
        "Hinton et al., Distilling the knowledge in a neural network, 2015",
    ),
    Kind(
        "dkd",
        logits.dkd,
        "T^2 (alpha KL of label or not + beta KL of the other classes)",
        "faithful",
        "Zhao et al., Decoupled knowledge distillation, CVPR 2022",
    ),
    Kind(
        "standardised",
        logits.standard,
        "kd of logits with mean 0, deviation 1",
        "faithful",
        "Sun et al., Logit standardization in knowledge distillation, CVPR 2024",
    ),
    Kind(
        "dist",
        relational.dist,
        "T^2 (1 - r over classes + 1 - r over images)",
        "faithful",
        "Huang et al., Knowledge distillation from a stronger teacher, NeurIPS 2022",
        relational=True,
    ),
    Kind(
        "hint",
        features.hints,
        "mean (f_S - f_T)^2",
        "paper form",
        "Romero et al., FitNets: hints for thin deep nets, ICLR 2015",
        compares="features",
    ),
    Kind(
        "at",
        features.at,
        "mean (a_S - a_T)^2, a = mean_c f^2 with norm 1",
        "faithful",
        "Zagoruyko and Komodakis, Paying more attention to attention, ICLR 2017",
        compares="features",
    ),
    Kind(
        "nfd",
        features.nfd,
        "mean (n(f_S) - n(f_T))^2 = 2 (1 - r), n: mean 0, variance 1",
        "reconstruction",
        "Liu et al., Normalized feature distillation, 2022",
        compares="features",
    ),
    Kind(
        "rkd",
        relational.rkd,
        "25 |d_S - d_T| + 50 |cos_S - cos_T|, smooth L1",
        "faithful",
        "Park et al., Relational knowledge distillation, CVPR 2019",
        compares="features",
        relational=True,
    ),
    Kind(
        "sp",
        relational.sp,
        "mean (G_S - G_T)^2, G = F F^T with rows of norm 1",
        "paper form",
        "Tung and Mori, Similarity-preserving knowledge distillation, ICCV 2019",
        compares="features",
        relational=True,
    ),
)
LOSSES: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}
