"""Memory aware synapses."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from lightning_cl.callbacks._foreign import Whole, describe, inputs_of
from lightning_cl.callbacks._importance import TaskBatches, importance_pass
from lightning_cl.callbacks._penalty import PenaltyOptions, QuadraticPenalty
from lightning_cl.errors import InputError
from lightning_cl.functional._importance_pass import default_outputs
from lightning_cl.functional.batches import batch_size
from lightning_cl.functional.mas import mas_importance

OutputsFn = Callable[[Any, Any], Tensor]
HINT = "give outputs_fn=lambda module, batch: outputs"


class MAS(QuadraticPenalty):
    r"""Keeps parameters that move the outputs near their values (Aljundi et al. 2018, arXiv:1711.09601).

    Memory aware synapses. The importance of a task is the mean over its samples of

    .. math:: \left| \nabla_\theta \lVert f_\theta(x_n) \rVert_2^2 \right|,

    per sample (other codes take the absolute value of a batch's gradient, in which samples cancel), and the penalty
    :math:`\frac{\lambda}{2}\sum_i \Omega_i(\theta_i-\theta^*_i)^2` pulls towards the newest weights. No label is used,
    so ``consolidate(None, module, loader)`` takes any data that the model is applied to. Importances are summed over
    tasks. The paper's penalty has no 1/2: lambda is twice its lambda.

    :math:`f` is, in this order: ``outputs_fn``; the module's own ``importance_logits(batch)``; ``module(x)``, with the
    first tensor of the batch; ``module(**batch).logits``, as Hugging Face has it. Outputs of inactive classes are left
    out.

    State: importance and anchor, two tensors per trainable parameter.

    Args:
        lambda_: Strength of the penalty, >= 0, or ``"auto"``; twice the paper's.
        outputs_fn: ``(module, batch) -> outputs (N, ...)``, for modules whose outputs are not found by themselves.
        n_samples: Use a seeded subset of this many samples; all by default.
        seed: Seed of the subset.
        name, apply, lambda_schedule, include, exclude, normalize, importance_dtype, importance_path, consolidate,
            select, state_path: See :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`.

    Raises:
        InputError: For values outside these ranges, outputs that are not found, or what every penalty refuses.
    """

    def __init__(
        self,
        lambda_: float | Literal["auto"],
        *,
        outputs_fn: OutputsFn | None = None,
        n_samples: int | None = None,
        seed: int = 0,
        name: str = "mas",
        **penalty: Unpack[PenaltyOptions],
    ) -> None:
        super().__init__(lambda_, name=name, **penalty)
        if n_samples is not None and n_samples < 1:
            raise InputError(f"n_samples={n_samples!r}", "an integer >= 1", "leave it out for all samples")
        self.outputs_fn, self.n_samples, self.seed = outputs_fn, n_samples, seed

    def _rehearse(self, trainer: Any, module: Any, loader: Any) -> None:
        self._sensitivity(trainer, module, loader, first_batch_only=True)

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        return self._sensitivity(trainer, module, loader)

    def _sensitivity(self, trainer: Any, module: Any, loader: Any, first_batch_only: bool = False) -> dict[str, Tensor]:
        options: dict[str, Any] = {"seed": self.seed, "first_batch_only": first_batch_only}
        with importance_pass(trainer, module, loader, **options) as batches:
            outputs_fn = self.outputs_fn or _outputs_of(module, batches)

            def outputs_of(module: Any, batch: Any) -> tuple[Tensor, None]:
                single = isinstance(batch, list) and len(batch) == 1 and isinstance(batch[0], Whole)
                outputs = outputs_fn(module, batch[0].batch if single else batch)
                return (outputs if outputs.dim() > 1 else outputs[:, None]), None

            n_samples = None if first_batch_only else self.n_samples
            common: dict[str, Any] = {"n_samples": n_samples, "distributed": batches.distributed, "seed": self.seed}
            return mas_importance(module, batches, outputs_fn=outputs_of, **common)


def _outputs_of(module: Any, batches: TaskBatches) -> OutputsFn:
    """The way to the module's outputs that works on the first batch."""
    if hasattr(module, "importance_logits"):
        return lambda module, batch: module.importance_logits(batch)[0]
    x, mapping = inputs_of(batches.first), isinstance(batches.first, Mapping)
    if x is None and not mapping:
        raise InputError(
            f"a batch of type {type(batches.first).__name__!r} with no obvious inputs", "a tensor of inputs", HINT
        )

    def outputs_fn(module: Any, batch: Any) -> Tensor:
        return module(inputs_of(batch)) if x is not None else default_outputs(module, batch)[0]

    call = "module(x)" if x is not None else "module(**batch)"
    try:
        with torch.no_grad():
            outputs = outputs_fn(module, batches.first)
    except Exception as error:  # anybody's forward may want anything
        raise InputError(f"{call}, which raises {type(error).__name__}: {error}", "outputs", HINT) from error
    n = batch_size(batches.first)
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.shape[:1] != (n,):
        raise InputError(f"{call}, which gives {describe(outputs)}", "numbers of shape (N, ...)", HINT)
    return outputs_fn
