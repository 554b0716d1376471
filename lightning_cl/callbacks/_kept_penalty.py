"""What every quadratic penalty keeps: importance and anchor, two tensors per parameter for any number of tasks."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from lightning_cl._compat_fsdp2 import whole
from lightning_cl._sharded_tensors import local, shard_like
from lightning_cl.callbacks._classifier import has_one_class
from lightning_cl.callbacks._importance_file import fitted, read_file
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.callbacks._parameter_filter import ParameterFilter, Patterns
from lightning_cl.callbacks._penalty_options import MethodOptions
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import merge_online
from lightning_cl.importance_files import ImportanceFile, check_importance

log = logging.getLogger(__name__)
ONE_CLASS = (
    "%s: the importance of task %d is 0, because one class alone has no gradient of its cross-entropy; nothing of it "
    "is held. HINT: put two classes or more into the task"
)


class KeptPenalty(MethodCallback):
    """Importance and anchor of what has been learned, and how they come from a task, a file or a state.

    State: importance and anchor, two tensors per selected trainable parameter.

    Args:
        include, exclude: Regular expressions (:func:`re.search`) on parameter names: only those that ``include``
            matches, without those that ``exclude`` matches.
        normalize: Divide every new importance by its largest (``"max"``) or mean (``"mean"``) value over all
            parameters.
        importance_dtype: ``"float32"``, or ``"bfloat16"`` at half the size. Anchors are fp32 or wider.
        importance_path: A file of :mod:`lightning_cl.importance_files` that stands for a task learned before the first
            one; not read where a state is restored.
        name, consolidate, select, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these, patterns that match nothing, importances that are not finite or all zero
            (a task with one class alone excepted, of which a warning says that nothing is held), and a file that does
            not fit.
    """

    def __init__(
        self,
        *,
        name: str,
        include: Patterns = None,
        exclude: Patterns = None,
        normalize: Literal["max", "mean"] | None = None,
        importance_dtype: Literal["float32", "bfloat16"] = "float32",
        importance_path: str | Path | None = None,
        **method: Unpack[MethodOptions],
    ) -> None:
        super().__init__(name=name, **method)
        if normalize not in (None, "max", "mean"):
            raise InputError(f"normalize={normalize!r}", "None, 'max' or 'mean'", "leave it out for None")
        if importance_dtype not in ("float32", "bfloat16"):
            raise InputError(f"importance_dtype={importance_dtype!r}", "'float32' or 'bfloat16'", "leave it out")
        self.normalize, self.importance_path = normalize, importance_path
        self.importance_dtype: torch.dtype = getattr(torch, importance_dtype)
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self._filter = ParameterFilter(include, exclude)
        self._file: ImportanceFile | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of importances and anchors; of sharded ones those of this process."""
        return sum(local(tensor).nbytes for tensor in [*self.importance.values(), *self.anchor.values()])

    @property
    def _gathers(self) -> bool:
        """Whether the importance is gathered on the way, from every step's gradients."""
        return False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Read ``state_path``, or else ``importance_path``."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.importance_path is not None and self.n_tasks == 0:
            # names and shapes are known when the module has been set up; that it can be read is known now
            self._file = read_file(self.importance_path)

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        """Importance of the task just learned, by the names of :meth:`_selected`; ``trainer`` may be None."""
        raise NotImplementedError

    def _merge(
        self,
        importance: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The penalty so far and the new task's as one."""
        return merge_online(importance, anchor, new, parameters)

    def _forget_plans(self) -> None:
        """The tensors are others now."""

    def _selected(self, module: Any) -> dict[str, Tensor]:
        """Name to parameter: what requires a gradient and is not left out by ``include`` and ``exclude``."""
        return {name: p for name, p in self._filter(dict(module.named_parameters())).items() if p.requires_grad}

    def _take_file(self, module: Any) -> None:
        """Begin with the penalty of ``importance_path``, as if a task had been learned with it."""
        if self._file is None or self.n_tasks:
            return
        file, named = self._file, dict(module.named_parameters())
        importance, anchor = fitted(file, named, str(self.importance_path))
        chosen = self._filter(named)
        new = self._normalized({name: f.to(named[name].device) for name, f in importance.items() if name in chosen})
        self._keep(
            {name: shard_like(value, named[name]) for name, value in new.items()},
            {name: shard_like(anchor[name], named[name]) for name in new},
        )
        self.n_tasks, self._file = 1, None
        log.info("%s: penalty on %d parameters from %s (%s)", self.state_key, len(new), self.importance_path, file.info)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        if self._file is None and self.importance_path is not None and self.n_tasks == 0:
            self._file = read_file(self.importance_path)
        self._take_file(module)
        with whole(module):
            selected = self._selected(module)
            new = {name: f for name, f in self._new_importance(trainer, module, loader).items() if name in selected}
            nothing = bool(new) and not any(bool(value.any()) for value in new.values())
            # a strong penalty may hold everything where it is; nothing is gathered then
            held = self._gathers and bool(self.importance)
            if nothing and not held and (held := has_one_class(module)):
                log.warning(ONE_CLASS, self.state_key, self.n_tasks)
            if not (nothing and held):
                check_importance(new, {name: selected[name].detach() for name in new}, where=f" of {self.state_key}")
                new = self._normalized(new)
        selected = self._selected(module)
        new = {name: shard_like(value, selected[name]) for name, value in new.items()}
        # half-precision weights are anchored in fp32
        parameters = {name: selected[name].detach().to(_wide(selected[name].dtype)) for name in new}
        importance, anchor = (
            {name: shard_like(a, parameters[name]) if name in parameters else a for name, a in kept.items()}
            for kept in (self.importance, self.anchor)
        )
        self._keep(*self._merge(importance, anchor, new, parameters))

    def _normalized(self, new: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.normalize is None:
            return new
        if self.normalize == "max":
            scale = max(float(value.max()) for value in new.values() if value.numel())
        else:
            total = sum(float(value.sum(dtype=torch.float64)) for value in new.values())
            scale = total / sum(value.numel() for value in new.values())
        return {name: value / scale for name, value in new.items()}

    def _keep(self, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> None:
        narrow = None if self.importance_dtype == torch.float32 else self.importance_dtype
        self.importance = {name: value.to(narrow or _wide(value.dtype)) for name, value in importance.items()}
        self.anchor = {name: value.clone() for name, value in anchor.items()}
        self._forget_plans()

    def _state(self) -> dict[str, Any]:
        return {"importance": dict(self.importance), "anchor": dict(self.anchor)}

    def _load(self, state: dict[str, Any]) -> None:
        self.importance = {name: value.clone() for name, value in state["importance"].items()}
        self.anchor = {name: value.clone() for name, value in state["anchor"].items()}
        self._forget_plans()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
