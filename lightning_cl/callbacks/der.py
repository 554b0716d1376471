"""Dark Experience Replay."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from lightning_cl import _compat
from lightning_cl.callbacks._hub import loss_of, with_loss
from lightning_cl.callbacks._memory_method import MemoryMethod
from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._outputs import LogitsFn, StepOutputs
from lightning_cl.callbacks._snapshot import kept_state
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import batch_size as size_of
from lightning_cl.functional.distillation import logit_mse


class DER(MemoryMethod):
    r"""Trains stored samples towards the logits they had when they were stored: DER, and DER++ with ``beta`` > 0.

    .. math:: L = L_{current} + \alpha \, \mathrm{MSE}(z(x'), z') + \beta L(x'', y'')

    x' with its stored logits z', and x'' with its label y'', are two independent draws from the memory; MSE is the mean
    over samples and classes. Buzzega et al. 2020, arXiv:2004.07211, with a reservoir filled step by step: a sample is
    stored with the logits of the training step that saw it, before the update. The logits of the user's own step are
    used for that; each of the two terms adds one pass through it on the drawn samples, silently. A head that has grown
    since is compared over the classes that the sample had when it was stored.

    See :class:`~lightning_cl.callbacks._outputs.StepOutputs` for how logits are found in modules that are not ours.
    While the memory is empty nothing is changed.

    State: the memory (at most ``memory_size`` samples with their logits in fp32), its generators, and the number of
    samples replayed.

    Not supported: manual optimization; logits that are not one row per sample.

    Args:
        memory_size: Samples kept in all, >= 0; None with ``memory_bytes``.
        alpha: Weight of the logits' term, >= 0.
        beta: Weight of the labels' term, >= 0; more than 0 is DER++.
        policy: What is kept: ``"reservoir"``, ``"class_balanced"`` or any other of
            :class:`~lightning_cl.memory.Memory`.
        max_per_class: For ``class_balanced``: no class holds more, even while there is room.
        batch_size: Memory samples in each draw (and process); as many as the current batch has by default.
        fill: ``"step"`` offers the current batch after each step of the first epoch; ``"consolidate"`` offers every
            training sample once at the end of a task, with the logits of the trained model in eval mode.
        logits_fn: ``(module, batch) -> (logits (N, C), labels (N,))``, where the step does not show them.
        label_fn: ``batch -> labels (N,)`` for ``class_balanced``, where :func:`~lightning_cl.memory.find_labels` finds
            none.
        seed: Seed of what is stored and what is drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: ``policy_options``, ``memory_bytes``, ``max_age``, ``id_fn``, ``storage``, ``path``, ``keep_states``,
            ``stores``, ``deletion_log``, ``features_fn``, ``losses_fn``: see
            :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`.

    Raises:
        InputError: For values outside these; on the first step if no logits are found.

    Example:
        >>> DER(200, alpha=0.2, beta=1.0).nbytes
        0
    """

    def __init__(
        self,
        memory_size: int | None = None,
        alpha: float = 0.5,
        beta: float = 0.0,
        *,
        policy: str = "reservoir",
        max_per_class: int | None = None,
        batch_size: int | None = None,
        fill: Literal["step", "consolidate"] = "step",
        logits_fn: LogitsFn | None = None,
        label_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        name: str = "der",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        super().__init__(
            memory_size,
            policy=policy,
            max_per_class=max_per_class,
            batch_size=batch_size,
            fill=fill,
            label_fn=label_fn,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
            **memory,
        )
        for argument, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{argument}={value!r}", "a finite number >= 0", "try alpha=0.5, beta=0.5")
        self.alpha, self.beta = alpha, beta
        self.outputs = StepOutputs("DER", logits_fn)
        self._module: Any = None
        self._tried = self._passed_before = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand around the training step, and where the training batches pass."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._module = pl_module
            self.outputs.attach(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave module and DataModule as they were."""
        self.outputs.detach()
        self._module = None
        super().teardown(trainer, pl_module, stage)

    def _forget_the_fit(self) -> None:
        super()._forget_the_fit()
        self._tried = False

    def _draws(self) -> int:
        return (self.alpha > 0) + (self.beta > 0)

    def _listener(self) -> Any:
        return self._replay

    def _around(self) -> Any:
        return self._recording

    def _recording(self) -> AbstractContextManager[None]:
        # the first step shows whether logits can be found, although they may be needed in the next task only
        return self.outputs.recording() if self._pending or not self._tried else nullcontext()

    def _replay(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        total = loss_of(output)
        if total is None:
            return output
        if self._pending or not self._tried:
            logits, _ = self.outputs.current(self._module, batch)
            self.step_extras = self._stored_with(logits, self._pending[0] if self._pending else batch)
            self._tried = True
        if self.drawn and self.alpha > 0:
            drawn = self.drawn[0]
            memory = self.outputs.of(call, self._module, drawn.batch)
            if memory is not None:
                total = total + self.alpha * logit_mse(memory, drawn.extras["logits"], drawn.extras["widths"])
        if self.drawn and self.beta > 0:
            memory = call(self.drawn[-1].batch)
            total = total if memory is None else total + self.beta * memory
        return with_loss(output, total)

    def _stored_with(self, logits: Tensor, batch: Any) -> dict[str, Tensor]:
        if len(logits) != size_of(batch):
            raise InputError(
                f"{len(logits)} rows of logits for a batch of {size_of(batch)} samples",
                "one row for each sample",
                "give logits_fn; and let no other callback add samples to the batch: Replay(mode='separate')",
            )
        widths = torch.full((len(logits),), logits.shape[1])
        return {"logits": logits.detach().float(), "widths": widths}

    def _offer(self, batch: Any, extras: dict[str, Tensor], **known: Any) -> None:
        # a step that was skipped has no logits
        if extras:
            super()._offer(batch, extras, **known)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        self._passed_before = self._patch is not None
        with ExitStack() as stack:
            if self.fill == "consolidate":
                stack.enter_context(kept_state(module))
                stack.enter_context(_compat.muted_logging(module))
                stack.enter_context(_compat.evaluating(module))
                stack.enter_context(torch.no_grad())
            super()._consolidate(trainer, module, loader)

    def _extras(self, module: Any, batch: Any) -> dict[str, Tensor]:
        # a batch that came through a patched module has passed on_before_batch_transfer
        moved = _compat.move_batch(getattr(module, "_trainer", None), module, batch, before=not self._passed_before)
        step = _compat.training_step_of(module)
        return self._stored_with(self.outputs.logits_only(lambda of: step(of, 0), module, moved), batch)
