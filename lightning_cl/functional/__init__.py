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
    "our_settings": "conventions",
    "suggest_lambda": "suggestion",
    "summarize_importance": "importance_summary",
    "mask_logits": "masking",
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
    "derive_seed": "seeding",
    "generator": "seeding",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
