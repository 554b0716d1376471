"""What methods share that mix a memory in, and compare the model with what it was before the task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from lightning_cl.callbacks._captured import Captured
from lightning_cl.callbacks._drawn import Drawn, behind
from lightning_cl.callbacks._hub import loss_of, with_loss
from lightning_cl.callbacks._memory_method import MemoryMethod
from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._teacher import Teacher
from lightning_cl.errors import InputError
from lightning_cl.finetuning.batch_parts import split_batch


class TeacherMethod(MemoryMethod):
    """Base of class-incremental methods on :class:`~lightning_cl.FineTuningModule` with a memory and a teacher.

    Memory samples stand behind the current ones in one batch, as in ``Replay(mode="mixed")``. The teacher is the
    module's backbone and head at the end of the task before, outside the module, in eval mode. Subclasses name the
    submodules that they read (:meth:`_watched`) and return the step's loss (:meth:`_loss`).

    Args:
        memory_size, policy, max_per_class, batch_size, seed, **memory: See
            :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    State: the memory, and one copy of the parameters and buffers of backbone and head.
    """

    needs_labels = True

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        policy: str = "class_balanced",
        max_per_class: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        name: str,
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        super().__init__(
            memory_size,
            policy=policy,
            max_per_class=max_per_class,
            batch_size=batch_size,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
            **memory,
        )
        self.teacher = Teacher()
        #: rows of the classes of earlier tasks, and of those that are new in this one
        self.old_classes: list[int] = []
        self.new_classes: list[int] = []
        self._module: Any = None
        self._captured = Captured()

    @property
    def nbytes(self) -> int:
        """Bytes of the samples and of the teacher."""
        return super().nbytes + self.teacher.nbytes

    # what a method defines ------------------------------------------------------------------------------------------

    def _watched(self, module: Any) -> dict[str, nn.Module]:
        """The submodules whose outputs the loss needs, each under a name of the method's."""
        raise NotImplementedError

    def _check(self, module: Any) -> None:
        """Refuse a module on which the method cannot work; its head has the rows of this task."""

    def _reads_teacher(self) -> bool:
        """Whether this step needs the teacher's outputs."""
        return bool(self.teacher)

    def _loss(self, module: Any, batch: Any, loss: Tensor, now: dict[str, Tensor], old: dict[str, Tensor]) -> Tensor:
        """The loss to train on.

        Args:
            module: The module.
            batch: ``(x, y)``, ``(x, y, task)`` or a mapping, memory samples included.
            loss: The training step's own.
            now: Outputs of the watched submodules in this step, with their graph.
            old: Those of the teacher; empty if it is not read.
        """
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse modules that are not ours, and listen to the submodules."""
        if stage == "fit" and not all(hasattr(pl_module, name) for name in ("backbone", "head", "training_logits")):
            raise InputError(
                f"{type(self).__name__} on {type(pl_module).__name__}",
                "a FineTuningModule, which has a backbone, a head and the rows of each task",
                "put the network into FineTuningModule(backbone=...), or use Replay",
            )
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._module = pl_module
            self._captured.attach(self._watched(pl_module))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave module and DataModule as they were."""
        super().teardown(trainer, pl_module, stage)
        self._captured.detach()
        self._module = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """See which classes are new, and whether the method can work with them."""
        super().on_fit_start(trainer, pl_module)
        before = {row for task in pl_module.tasks[:-1] for row in task}
        self.old_classes = sorted(before)
        self.new_classes = sorted({row for task in pl_module.tasks[-1:] for row in task} - before)
        if not pl_module.tasks:
            raise InputError(
                f"{type(self).__name__} with data that have no task",
                "to know which classes are new",
                "use TaskDataModule, or a DataModule with an attribute task",
            )
        if self.needs_new_classes and self.old_classes and not self.new_classes:
            raise InputError(
                f"{type(self).__name__} on a task without a new class",
                "classes that come task by task (scenario class_incremental or task_incremental)",
                "use er, eeil or a penalty for domain_incremental and data_incremental",
            )
        self._check(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Record the step that follows."""
        self._captured.start()

    def _incoming(self, batch: Any, drawn: list[Drawn], hook: Callable[[Any], Any]) -> Any:
        return hook(behind(batch, drawn))

    def _listener(self) -> Any:
        return self._listen

    def _listen(self, call: Any, batch: Any, batch_idx: int, output: Any) -> Any:
        now, loss = self._captured.stop(), loss_of(output)
        if loss is None:
            return output
        missing = sorted(self._watched(self._module).keys() - now.keys())
        if missing:
            raise InputError(
                f"a training step that did not show {', '.join(missing)} to {type(self).__name__}",
                "submodules that are called once in every step",
                "compile the module before fit, and give stages that forward() calls",
            )
        old = self._teachers_outputs(self.teacher, batch) if self._reads_teacher() else {}
        total = self._loss(self._module, batch, loss, now, old)
        return output if total is loss else with_loss(output, total)

    def _teachers_outputs(self, teacher: Teacher, batch: Any) -> dict[str, Tensor]:
        module, x = self._module, split_batch(batch).inputs
        with teacher.in_place_of(parts(module)):
            self._captured.start()
            module.head(module.backbone(x))
            return self._captured.stop()

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        super()._consolidate(trainer, module, loader)
        self.teacher.take(parts(module))

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "teacher": dict(self.teacher.tensors)}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.teacher.tensors = dict(state["teacher"])


def parts(module: Any) -> nn.Module:
    """What a teacher is a copy of; metrics come and go."""
    return nn.ModuleDict({"backbone": module.backbone, "head": module.head})


def weight(name: str, value: Any) -> float:
    """A finite number >= 0.

    Raises:
        InputError: For anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError(f"{name}={value!r}", "a finite number >= 0", "0 leaves this term out")
    return float(value)


def rows(indices: list[int], like: Tensor) -> Tensor:
    """Indices as a tensor on the device of ``like``."""
    return torch.tensor(indices, dtype=torch.long, device=like.device)
