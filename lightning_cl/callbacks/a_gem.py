"""Averaged gradient episodic memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor

from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._projection import GradientProjection
from lightning_cl.functional.projection import project_agem


class AGEM(GradientProjection):
    r"""Takes from the gradient what would raise the loss on a draw of stored samples (Chaudhry et al. 2019).

    Averaged gradient episodic memory, A-GEM (arXiv:1812.00420): with the gradient :math:`g_{ref}` of the loss on
    memory samples,

    .. math:: g \leftarrow g - \frac{g^\top g_{ref}}{g_{ref}^\top g_{ref}}\, g_{ref}
        \quad\text{if } g^\top g_{ref} < 0 .

    The user's ``training_step`` runs a second time at every step, on memory samples; a step takes about twice as long.
    While the memory is empty, and while nothing is violated, training is that without the callback, bit for bit.
    See :class:`~lightning_cl.callbacks._projection.GradientProjection` for gradient accumulation, precision, clipping,
    other callbacks and DDP.

    State: the memory (at most ``memory_size`` samples), its generators, two numbers.

    Not supported: manual optimization (there is no loss of the memory samples), sparse gradients.

    Args:
        memory_size: Samples kept in all, >= 0; None with ``memory_bytes``.
        policy: ``"task_balanced"``: an equal share for every task, a reservoir within each; or ``"reservoir"`` or
            ``"class_balanced"``, see :class:`~lightning_cl.memory.Memory`.
        max_per_task: For ``task_balanced``: no task holds more, even while there is room.
        batch_size: Memory samples per step (and process), all different; as many as the current batch has by default.
            All there are, while the memory holds fewer.
        fill: ``"consolidate"`` offers every training sample once at the end of a task; ``"step"`` offers the current
            batch after each step of the first epoch. The memory then holds samples of the present task too.
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

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        policy: str = "task_balanced",
        max_per_task: int | None = None,
        batch_size: int | None = None,
        fill: Literal["consolidate", "step"] = "consolidate",
        label_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        name: str = "a_gem",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        super().__init__(
            memory_size,
            policy=policy,
            max_per_task=max_per_task,
            batch_size=batch_size,
            fill=fill,
            label_fn=label_fn,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
            **memory,
        )

    @property
    def boundary_hint(self) -> str:
        """The arguments with which it needs no boundary."""
        return "set policy='reservoir', fill='step'"

    def _choose(self, n: int, rank: int, world: int) -> list[Tensor]:
        slots = self.memory.draw(min(n * world, len(self.memory)))
        # too few for a share each: every process takes all
        return [slots[rank::world] if len(slots) >= world else slots]

    def _project(self, gradient: list[Tensor], references: Sequence[list[Tensor]]) -> list[Tensor]:
        return project_agem(gradient, references[0])
