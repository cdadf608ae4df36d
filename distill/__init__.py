"""Distillation: losses from logits and features, objectives made of them, what blocks learn, and RDMs."""

from distill.features import attention_transfer, relational_angle, relational_distance, similarity_preserving
from distill.losses import (
    adaptive_alpha_divergence,
    alpha_divergence,
    kl_divergence,
    mutual_learning,
    soft_cross_entropy,
)
from distill.objective import Objective, cohort_losses, objective_losses
from distill.rdm import rdm_similarity, teacher_guidance

__all__ = [
    "Objective",
    "adaptive_alpha_divergence",
    "alpha_divergence",
    "attention_transfer",
    "cohort_losses",
    "kl_divergence",
    "mutual_learning",
    "objective_losses",
    "rdm_similarity",
    "relational_angle",
    "relational_distance",
    "similarity_preserving",
    "soft_cross_entropy",
    "teacher_guidance",
]
