"""The plain pull towards the weights of the last task."""

from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from lightning_cl.callbacks._penalty import PenaltyOptions, QuadraticPenalty
from lightning_cl.functional.penalty import merge_offline


class L2(QuadraticPenalty):
    r"""Keeps every parameter alike near its value (the L2 baseline of Hsu et al. 2018, arXiv:1810.12488).

    The penalty is :math:`\frac{\lambda}{2}\sum_i (\theta_i-\theta^*_i)^2`: an importance of 1 for all that was
    trainable. By default it does not accumulate: after each task the anchor is where the task ended, and the
    importance is 1 still (as in Hsu's code). With ``accumulate`` there is one such term per task, which together are an
    importance of the number of tasks around the mean of their weights.

    Hsu's penalty has no 1/2: lambda is twice theirs. Rows that a head gains are free until their first task is over.

    State: importance and anchor, two tensors per trainable parameter. No pass over the data.

    Args:
        lambda_: Strength of the penalty, >= 0, or ``"auto"``; in units of loss over squared parameters.
        accumulate: One term for each task instead of one for the last.
        name, apply, lambda_schedule, include, exclude, normalize, importance_dtype, importance_path, consolidate,
            select, state_path: See :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`.

    Raises:
        InputError: For what every penalty refuses.
    """

    needs_data = False

    def __init__(
        self,
        lambda_: float | Literal["auto"],
        *,
        accumulate: bool = False,
        name: str = "l2",
        **penalty: Unpack[PenaltyOptions],
    ) -> None:
        super().__init__(lambda_, name=name, **penalty)
        self.accumulate = accumulate

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        return {
            name: torch.ones_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
            for name, p in self._selected(module).items()
        }

    def _merge(
        self,
        importance: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.accumulate:
            return merge_offline(importance, anchor, new, parameters)
        # what is frozen by now keeps its own
        return {**importance, **new}, {**anchor, **parameters}
