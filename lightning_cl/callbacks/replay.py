"""Experience replay."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor

from lightning_cl.callbacks._drawn import Drawn, behind
from lightning_cl.callbacks._hub import loss_of, with_loss
from lightning_cl.callbacks._loss_weights import loss_weights, two_weights
from lightning_cl.callbacks._memory_method import MemoryMethod
from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.errors import InputError


class Replay(MemoryMethod):
    r"""Trains on stored samples of earlier tasks beside the current ones: experience replay, ER.

    Sources: Chaudhry et al. 2019, arXiv:1902.10486; van de Ven et al. 2022, doi:10.1038/s42256-022-00568-3.

    ``mode="mixed"`` puts memory samples behind the current ones in one batch, of the structure that the user's
    ``training_step`` knows; every sample weighs the same. ``mode="separate"`` runs ``training_step`` a second time on a
    batch of memory samples, silently, and trains on :math:`w_c L_{current} + w_m L_{memory}`; by default with van de
    Ven's weights :math:`1/k` and :math:`1 - 1/k`, where k counts the tasks so far, the current one included.

    Works on batches of tensors, tuples, mappings, named tuples, dataclasses and objects (see
    :mod:`lightning_cl.functional.batches`) and on modules that are not ours. While the memory is empty nothing is
    changed: the first task is bit-identical to training without the callback. A transform in
    ``on_after_batch_transfer`` sees the memory samples too, anew each time; one in ``on_before_batch_transfer`` is
    applied once, when a sample is stored.

    State: the memory (at most ``memory_size`` samples), its generators, and the number of samples replayed.

    Not supported: in separate mode, manual optimization, and other callbacks that
    rewrite the batch in place (they see only the current one).

    Args:
        memory_size: Samples kept in all, >= 0; None with ``memory_bytes``.
        policy: What is kept: ``"reservoir"``, ``"class_balanced"`` or any other of
            :class:`~lightning_cl.memory.Memory`.
        max_per_class: For ``class_balanced``: no class holds more, even while there is room.
        mode: ``"mixed"`` or ``"separate"``.
        batch_size: Memory samples per step (and process); as many as the current batch has by default.
        weights: In separate mode: ``"tasks"``, or the pair (current, memory).
        fill: ``"consolidate"`` offers every training sample once at the end of a task, unshuffled and not augmented;
            ``"step"`` offers the current batch as it is trained on, after each step of the first epoch.
        label_fn: ``batch -> labels (N,)`` for ``class_balanced``, where :func:`~lightning_cl.memory.find_labels` finds
            none.
        seed: Seed of what is stored and what is drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: ``policy_options``, ``memory_bytes``, ``max_age``, ``id_fn``, ``storage``, ``path``, ``keep_states``,
            ``stores``, ``deletion_log``, ``features_fn``, ``losses_fn``: see
            :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`.

    Raises:
        InputError: For values outside these; in ``setup`` and on the first batch for what cannot work.
    """

    supports_sharding = True

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        policy: str = "reservoir",
        max_per_class: int | None = None,
        mode: Literal["mixed", "separate"] = "mixed",
        batch_size: int | None = None,
        weights: Literal["tasks"] | Sequence[float] = "tasks",
        fill: Literal["consolidate", "step"] = "consolidate",
        label_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        name: str = "replay",
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
        if mode not in ("mixed", "separate"):
            raise InputError(f"mode={mode!r}", "'mixed' or 'separate'", "leave it out for 'mixed'")
        if weights != "tasks" and not two_weights(weights):
            expected = "'tasks' or two finite numbers >= 0 (current, memory)"
            raise InputError(f"weights={weights!r}", expected, "try weights=(0.5, 0.5)")
        if weights != "tasks" and mode == "mixed":
            raise InputError(f"weights={weights!r} with mode='mixed'", "no weights", "set mode='separate'")
        self.mode, self.weights = mode, weights

    @property
    def needs_boundary(self) -> bool:
        """Whether the memory is filled at the end of a task, or the weights count tasks."""
        return super().needs_boundary or (self.mode == "separate" and isinstance(self.weights, str))

    @property
    def boundary_hint(self) -> str:
        """The arguments with which it needs no boundary."""
        counts = self.mode == "separate" and isinstance(self.weights, str)
        needed = ["fill='step'"] if self.fill != "step" else []
        return f"set {', '.join([*needed, *(['weights=[0.5,0.5]'] if counts else [])])}"

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the current and the memory loss in separate mode, now."""
        return loss_weights(self.weights, self.n_tasks)

    def mix(self, batch: Any) -> Any:
        """The batch with memory samples behind its own; the batch itself while the memory is empty.

        Called by the patched hook, or by :class:`~lightning_cl.ReplayDataModule`.
        """
        return behind(batch, self._take(batch))

    def _incoming(self, batch: Any, drawn: list[Drawn], hook: Callable[[Any], Any]) -> Any:
        if self.mode == "mixed":
            return hook(behind(batch, drawn))
        return super()._incoming(batch, drawn, hook)

    @property
    def _mixes(self) -> bool:
        return self.mode == "mixed"

    def _draws(self) -> int:
        return 0 if self.mode == "separate" and self.loss_weights[1] == 0 else 1

    def _listener(self) -> Any:
        return self._two_losses if self.mode == "separate" else None

    def _two_losses(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        current = loss_of(output)
        if not self.drawn or current is None:
            return output
        memory = call(self.drawn[0].batch)
        if memory is None:
            return output
        weights = self.loss_weights
        return with_loss(output, weights[0] * current + weights[1] * memory)
