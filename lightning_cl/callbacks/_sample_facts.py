"""What a policy wants to know of each sample and the batch does not say: features and losses under the model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_cl import _compat
from lightning_cl.callbacks._foreign import inputs_of, logits_of, why_no_logits
from lightning_cl.callbacks._hub import loss_of
from lightning_cl.callbacks._snapshot import kept_state
from lightning_cl.errors import InputError
from lightning_cl.finetuning.batch_parts import split_batch
from lightning_cl.functional.batches import batch_size, select


class SampleFacts:
    """Features and losses of the samples of a batch, in eval mode; nothing of the module is changed.

    Features: ``features_fn``; else the module's ``backbone`` on the batch's inputs; else what enters the module's last
    Linear when ``training_step`` runs. Losses: ``losses_fn``; else the cross-entropy of the logits that the loss of
    ``training_step`` is made of, if there are such; else ``training_step`` on one sample after the other.

    Args:
        needs: ``"features"`` and ``"losses"``, or one of them; anything else is not looked at.
        features_fn: ``(module, batch) -> (N, ...)``.
        losses_fn: ``(module, batch) -> (N,)``.
    """

    def __init__(
        self,
        needs: frozenset[str],
        features_fn: Callable[[Any, Any], Tensor] | None = None,
        losses_fn: Callable[[Any, Any], Tensor] | None = None,
    ) -> None:
        self.needs, self.features_fn, self.losses_fn = needs & {"features", "losses"}, features_fn, losses_fn

    def __call__(self, module: Any, batch: Any) -> dict[str, Tensor]:
        """Name -> (N,) or (N, D), for a batch on the module's device; the same in every process."""
        if not self.needs:
            return {}
        found = {}
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            kept_state(module),
            _compat.muted_logging(module),
            _compat.evaluating(module),
        ):
            if "features" in self.needs:
                found["features"] = self._features(module, batch).flatten(1)
            if "losses" in self.needs:
                found["losses"] = self._losses(module, batch)
        n = batch_size(batch)
        for name, value in found.items():
            if len(value) != n:
                raise InputError(
                    f"{name} of shape {tuple(value.shape)} for {n} samples", "one row per sample", f"give {name}_fn"
                )
        return {name: value.float() for name, value in found.items()}

    def _features(self, module: Any, batch: Any) -> Tensor:
        if self.features_fn is not None:
            return self.features_fn(module, batch)
        backbone = getattr(module, "backbone", None)
        # a module of ours takes more kinds of batches
        x = split_batch(batch).inputs if hasattr(module, "importance_logits") else inputs_of(batch)
        if isinstance(backbone, nn.Module) and x is not None:
            features = backbone(x)
            if isinstance(features, Tensor):
                return features
        linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
        seen: list[Tensor] = []
        if linears:
            handle = linears[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
            try:
                _compat.training_step_of(module)(batch, 0)
            finally:
                handle.remove()
        if not seen:
            raise InputError(
                f"{type(module).__name__} without a backbone, and without a Linear that its training_step uses",
                "features of each sample",
                "give features_fn=lambda module, batch: features (N, D)",
            )
        return seen[0]

    def _losses(self, module: Any, batch: Any) -> Tensor:
        if self.losses_fn is not None:
            return self.losses_fn(module, batch)
        logits = None
        if hasattr(module, "importance_logits"):
            logits = module.importance_logits(batch)
        elif not why_no_logits(module, batch):
            logits = logits_of(module, batch)
        if logits is not None:
            return cross_entropy(logits[0].float(), logits[1], reduction="none")
        step = _compat.training_step_of(module)
        losses = []
        for i in range(batch_size(batch)):
            loss = loss_of(step(select(batch, torch.tensor([i])), 0))
            if not isinstance(loss, Tensor):
                raise InputError(
                    f"{type(module).__name__}.training_step that returned no loss for one sample",
                    "the loss of each sample",
                    "give losses_fn=lambda module, batch: losses (N,)",
                )
            losses.append(loss.detach().reshape(()))
        return torch.stack(losses)
