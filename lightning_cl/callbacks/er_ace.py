"""Experience replay with asymmetric cross-entropy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor
from torch.nn import functional as F

from lightning_cl.callbacks._hub import loss_of, with_loss
from lightning_cl.callbacks._memory_method import MemoryMethod
from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._outputs import LogitsFn, StepOutputs
from lightning_cl.errors import InputError
from lightning_cl.functional.asymmetric import present_classes
from lightning_cl.functional.masking import mask_logits


class ERACE(MemoryMethod):
    r"""Replays stored samples, and lets current ones push only on the classes that occur among them: ER-ACE.

    .. math:: L = CE(z(x) |_{C}, y) + L(x', y')

    where C are the classes that occur in the current batch, the logits of all others being left out of its softmax, and
    (x', y') are samples from the memory, whose loss is that of the user's ``training_step``, over all classes. New
    samples thus do not push down the logits of old classes. Caccia et al. 2022, arXiv:2104.05025.

    The current loss stays the user's own: only the logits that its ``cross_entropy`` gets are masked, so that class
    weights and further terms remain. The logits of the user's own step are used; the memory adds one ``training_step``,
    silently. Unlike other replay methods it changes the first task too, and a batch of one class alone teaches nothing.

    State: the memory (at most ``memory_size`` samples), its generators, and the number of samples replayed.

    Not supported: manual optimization; label smoothing, and labels that are
    probabilities.

    Args:
        memory_size: Samples kept in all; 0 leaves the method out; None with ``memory_bytes``.
        policy: What is kept: ``"reservoir"``, ``"class_balanced"`` or any other of
            :class:`~lightning_cl.memory.Memory`.
        max_per_class: For ``class_balanced``: no class holds more, even while there is room.
        batch_size: Memory samples per step (and process); as many as the current batch has by default.
        fill: ``"step"`` offers the current batch after each step of the first epoch; ``"consolidate"`` offers every
            training sample once at the end of a task.
        logits_fn: ``(module, batch) -> (logits (N, C), labels (N,))``, for a step without a ``cross_entropy``; the
            current loss is then the masked cross-entropy of these, in place of the step's own.
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
        >>> ERACE(200).nbytes
        0
    """

    # its context is the outermost one: others see the logits before they are masked
    order = -1

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        policy: str = "reservoir",
        max_per_class: int | None = None,
        batch_size: int | None = None,
        fill: Literal["step", "consolidate"] = "step",
        logits_fn: LogitsFn | None = None,
        label_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        name: str = "er_ace",
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
        self.outputs = StepOutputs("ERACE", logits_fn, change=_own_classes)
        self._module: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand around the training step, and where the training batches pass."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._module = pl_module

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave module and DataModule as they were."""
        self.outputs.detach()
        self._module = None
        super().teardown(trainer, pl_module, stage)

    def _listener(self) -> Any:
        return None if self.off else self._asymmetric

    def _around(self) -> Any:
        return self.outputs.recording

    def _asymmetric(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        current = loss_of(output)
        if current is None:
            return output
        logits, labels = self.outputs.current(self._module, batch)
        if self.outputs.logits_fn is not None:
            current = F.cross_entropy(_own_classes(logits, labels), labels)
        memory = call(self.drawn[0].batch) if self.drawn else None
        return with_loss(output, current if memory is None else current + memory)


def _own_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with all classes masked that do not occur among the labels."""
    if logits.dim() != 2 or labels.dim() != 1 or labels.is_floating_point():
        raise InputError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} of {labels.dtype} for ERACE",
            "logits (N, C) and integer labels (N,)",
            "give logits_fn=lambda module, batch: (logits, labels)",
        )
    return mask_logits(logits, present_classes(labels, logits.shape[1]))
