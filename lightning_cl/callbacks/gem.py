"""Gradient episodic memory."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor

from lightning_cl.callbacks._memory_options import FIXED_POLICY, MemoryOptions, refuse_options
from lightning_cl.callbacks._projection import GradientProjection
from lightning_cl.errors import InputError
from lightning_cl.functional.projection import project_gem
from lightning_cl.functional.sampling import draw
from lightning_cl.functional.seeding import derive_seed, generator


class GEM(GradientProjection):
    r"""Takes from the gradient what would raise the loss on any earlier task (Lopez-Paz & Ranzato 2017).

    Gradient episodic memory, GEM (arXiv:1706.08840): with one gradient :math:`g_k` of the loss on the stored samples of
    each earlier task, the nearest :math:`\tilde g` to :math:`g` with :math:`\tilde g^\top g_k \ge 0` for all k, found
    by a quadratic program of as many variables as there are earlier tasks
    (:func:`lightning_cl.functional.project_gem`). It is changed only where some :math:`g^\top g_k < 0`.

    The user's ``training_step`` runs once more at every step for each earlier task, on that task's samples: together as
    much work as one step with the whole memory in its batch. Without ``batch_size`` the memory is read once for each
    optimizer step, at its first batch. See :class:`~lightning_cl.callbacks._projection.GradientProjection` for gradient
    accumulation, precision, clipping, other callbacks and DDP.

    State: the memory (at most ``memory_size`` samples), its generators, two numbers. While training, one gradient per
    earlier task.

    Not supported: manual optimization (there is no loss of the memory samples), sparse gradients.

    Args:
        memory_size: Samples kept in all, >= 0; None with ``memory_bytes``. Every task has an equal share, a reservoir
            within each.
        margin: The part of every earlier task's gradient that a projected gradient has at least, >= 0: the paper's
            "memory strength". A large one favours the earlier tasks.
        max_per_task: No task holds more, even while there is room.
        batch_size: Memory samples per earlier task and step (and process), all different; by default all there are.
        fill: ``"consolidate"`` offers every training sample once at the end of a task; ``"step"`` offers the current
            batch after each step of the first epoch.
        seed: Seed of what is stored and what is drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: ``memory_bytes``, ``max_age``, ``id_fn``, ``storage``, ``path``, ``keep_states``, ``stores``,
            ``deletion_log``: see :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`.

    Raises:
        InputError: For values outside these, and if ``quadprog`` is not installed; in ``setup`` and on the first batch
            for what cannot work.
    """

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        margin: float = 0.5,
        max_per_task: int | None = None,
        batch_size: int | None = None,
        fill: Literal["consolidate", "step"] = "consolidate",
        seed: int = 0,
        name: str = "gem",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        refuse_options("GEM", memory, FIXED_POLICY)
        super().__init__(
            memory_size,
            policy="task_balanced",
            max_per_task=max_per_task,
            batch_size=batch_size,
            fill=fill,
            label_fn=None,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
            **memory,
        )
        if not isinstance(margin, int | float) or not 0 <= margin < float("inf"):
            raise InputError(f"margin={margin!r}", "a finite number >= 0", "leave it out for 0.5")
        if find_spec("quadprog") is None:
            raise InputError(
                "GEM without the package 'quadprog'", "a solver of quadratic programs", "pip install lightning_cl[qp]"
            )
        self.margin = float(margin)
        self._subsets = generator(derive_seed(seed, name), "subsets")
        self._by_task: list[Tensor] = []
        self._known_at: tuple[int, int, int] | None = None

    def _choose(self, n: int, rank: int, world: int) -> list[Tensor]:
        if self.batch_size is None and self._references:
            # the same samples and weights as at the step's first batch
            return []
        chosen = []
        for slots in self._slots():
            if self.batch_size is not None and self.batch_size * world < len(slots):
                slots = slots[draw(len(slots), self.batch_size * world, self._subsets)]
            # too few for a share each: every process takes all
            chosen.append(slots[rank::world] if len(slots) >= world else slots)
        return chosen

    def _slots(self) -> list[Tensor]:
        """Slots of each earlier task's samples."""
        known_at = (self.memory.n_seen, len(self.memory), self.n_tasks)
        if self._known_at != known_at:
            self._known_at = known_at
            tasks = self.memory.labels
            found = [] if tasks is None else [(tasks == task).nonzero().flatten() for task in range(self.n_tasks)]
            self._by_task = [slots for slots in found if len(slots)]
        return self._by_task

    def _project(self, gradient: list[Tensor], references: Sequence[list[Tensor]]) -> list[Tensor]:
        return project_gem(gradient, references, self.margin)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "subsets": self._subsets.get_state()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._subsets.set_state(state["subsets"].cpu())
        self._known_at = None
