"""Distillation on old classes, weighed by their share of all classes."""

from typing import Any

import torch
from torch import Tensor

from lightning_cl.callbacks._classifier import inputs_of
from lightning_cl.callbacks._head_output import HeadOutput
from lightning_cl.callbacks._hub import loss_of, with_loss
from lightning_cl.callbacks._teacher import Teacher
from lightning_cl.functional.distillation import distillation_loss


class ShareDistillation:
    r"""Adds distillation from the model of the last task: :math:`\lambda L_d + (1 - \lambda) L`,
    :math:`\lambda = n_{old} / n_{all}`.

    L_d is the cross-entropy between the teacher's and the model's softened predictions over the old classes, without
    the factor T^2 (Wu et al. 2019, Zhao et al. 2020). The teacher predicts by its rule for prediction if it has one
    that makes logits.

    State: the teacher, one copy of the module's parameters and buffers.
    """

    def __init__(self, method: str, temperature: float) -> None:
        self.method, self.temperature = method, temperature
        self.teacher, self.output = Teacher(), HeadOutput()

    def losses(self, module: Any, batch: Any, output: Any, old: list[int], n_all: int) -> Any:
        """A training step's output with distillation in its loss; as it was while there is no teacher."""
        loss = loss_of(output)
        if loss is None or not self.teacher:
            return output
        logits = self.output.take(module, self.method)
        rows = torch.tensor(old, device=logits.device)
        share = len(old) / n_all
        targets = teacher_logits(self.teacher, module, inputs_of(batch, self.method))[:, rows]
        distilled = distillation_loss(logits[:, rows], targets, self.temperature)
        return with_loss(output, share * distilled + (1 - share) * loss)


def teacher_logits(teacher: Teacher, module: Any, x: Any) -> Tensor:
    """The teacher's logits, corrected if it predicts by a bias correction."""
    with teacher.in_place_of(module):
        logits = module.head(module.backbone(x))
        corrected = getattr(getattr(module, "rule", None), "corrects_logits", False)
        return module.rule(logits, None) if corrected else logits
