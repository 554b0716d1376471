"""Pure tensor functions; nothing of Lightning and nothing of ours is imported here."""

from importlib import import_module
from typing import Any

_WHERE = {
    "diagonal_fisher": "fisher",
    "kronecker_factors": "kfac",
    "kronecker_fisher": "kfac",
    "mas_importance": "mas",
    "quadratic_penalty": "penalty",
    "add_quadratic_gradient_": "penalty",
    "merge_offline": "penalty",
    "merge_online": "penalty",
    "merge_average": "penalty",
    "proximal_step_": "proximal",
    "step_rates": "proximal",
    "project_agem": "projection",
    "project_gem": "projection",
    "our_settings": "conventions",
    "suggest_lambda": "suggestion",
    "shrink_and_perturb": "shrink_perturb",
    "steepest_learning_rate": "learning_rate",
    "interpolate": "interpolation",
    "average_states": "interpolation",
    "greedy_soup": "soup",
    "reestimate_batch_norm": "batch_norm",
    "samples_of_fit": "compute",
    "budget_until": "compute",
    "draw_class_balanced": "sampling",
    "summarize_importance": "importance_summary",
    "class_means": "nearest_mean",
    "nearest_mean_scores": "nearest_mean",
    "herding_order": "herding",
    "binary_distillation_loss": "binary_distillation",
    "distillation_loss": "distillation",
    "fit_bias": "bias_fit",
    "alignment_factor": "weight_alignment",
    "mask_logits": "masking",
    "logit_mse": "distillation",
    "present_classes": "asymmetric",
    "less_forget_loss": "lucir",
    "margin_ranking_loss": "lucir",
    "pooled_outputs": "podnet",
    "pooled_distance": "podnet",
    "nca_loss": "podnet",
    "cross_distillation_loss": "eeil",
    "imprinted_rows": "imprinting",
    "gaussian_kl": "vae",
    "reconstruction_loss": "vae",
    "vae_loss": "vae",
    "average_accuracy": "accuracy_matrix",
    "average_incremental_accuracy": "accuracy_matrix",
    "backward_transfer": "accuracy_matrix",
    "forgetting": "accuracy_matrix",
    "forward_transfer": "accuracy_matrix",
    "learning_accuracy": "accuracy_matrix",
    "min_accuracy": "accuracy_matrix",
    "logme": "logme",
    "knn_predictions": "nearest_neighbours",
    "kendall_w": "ranking",
    "ranks": "ranking",
    "relative_gradient_norms": "gradient_norms",
    "relative_rates": "gradient_norms",
    "derive_seed": "seeding",
    "generator": "seeding",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
