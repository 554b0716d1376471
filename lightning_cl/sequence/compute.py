"""Joint's compute, and what a budget leaves for each fit.

Joint's compute is what one fit on the training data of all tasks costs with this run's Trainer: FLOPs of forward and
backward of a sample (``torch.utils.flop_counter``: matrix products and convolutions; the head knows all classes, all
parameters that can be trained are, no method acts), times the samples of all tasks, times the epochs (or the samples in
``max_steps``). Nothing is trained to know it.

``budget`` times that is what a run's training may cost: fits with what is replayed or distilled in them,
consolidation, and other stages; evaluation does not count. Each task has a share in proportion to the samples that
its fit draws from: its own, or all that is stored where a method trains on that, so that later tasks get more. When a
task's fit ends, no more may have been spent than the shares so far; what a task leaves passes on to the next. A fit
takes one step at least, and later ones pay for it. Consolidation and a method's other stages are never cut: a fit
leaves room for them, as much as the last task's cost per sample.
"""

import copy
import warnings
from typing import Any

import torch

from lightning_cl import _compat
from lightning_cl._compat_flops import flop_counter
from lightning_cl._compat_fsdp2 import whole
from lightning_cl.callbacks._own_data import OwnData
from lightning_cl.errors import InputError, shortened
from lightning_cl.functional.batches import batch_size
from lightning_cl.functional.compute import budget_until, samples_of_fit
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.sequence.state import SequenceState
from lightning_cl.streams.data import Data
from lightning_cl.streams.stream import merge_tasks
from lightning_cl.streams.task import Task

MEASURED = 8  # samples; the cost is proportional to their number


def joint_flops(state: SequenceState) -> int | None:
    """FLOPs of joint training by the formula above; None where it cannot be known.

    That is: a Trainer without an end, or a ``training_step`` that does not run outside of one.
    """
    if state.joint_flops is None:
        try:
            state.joint_flops = _measured(state)
        except Exception:  # a user's training_step may need anything
            state.joint_flops = 0
    return state.joint_flops or None


def share_of_fit(state: SequenceState, task: Task) -> float | None:
    """FLOPs that the fit of a task may spend; None without a budget.

    Raises:
        InputError: If joint's compute is not known, or not even one step can be paid.
    """
    if state.settings.budget is None:
        return None
    joint = joint_flops(state)
    if joint is None:
        state.joint_flops = None
        raise InputError(
            f"budget={state.settings.budget!r} for {type(state.module).__name__}, whose compute cannot be measured",
            "a training_step that runs on a batch outside a Trainer and returns a loss, and max_epochs or max_steps",
            f"leave budget out{_why(state)}",
        )
    before = sum(sum(stages.values()) for stages in state.progress["flops"].values())
    total = state.settings.budget * joint
    step = min(state.batch_size, len(task.train)) * state.flops_per_sample
    left, steps = total - before - _reserve(state, task), state.n_tasks if task.id == 0 else 1
    if left < steps * step:
        raise InputError(
            f"budget={state.settings.budget!r}, of which {max(left, 0):.3g} FLOPs are left at task {task.id}, when a "
            f"step takes {step:.3g}",
            "enough for a step of every task, beside what consolidation costs",
            "a larger budget, a smaller batch_size, or a consolidation on fewer samples (n_samples)",
        )
    return budget_until(total, _shares(state), task.id) - before - _reserve(state, task)


def _shares(state: SequenceState) -> list[int]:
    """For each task, how many samples its fit draws from."""
    sizes = [len(task.train) for task in state.stream[: state.n_tasks]]
    own = next((callback for callback in state.callbacks if isinstance(callback, OwnData) and not callback.off), None)
    if own:
        return [own.pool_size(sizes[: t + 1]) for t in range(len(sizes))]
    return [sum(sizes[: t + 1]) for t in range(len(sizes))] if state.settings.training_data == "seen" else sizes


def _reserve(state: SequenceState, task: Task) -> float:
    """What this task's stages beside the fit will cost, from what the last task's cost per sample."""
    stages = state.progress["flops"].get(str(task.id - 1), {})
    spent = sum(value for stage, value in stages.items() if stage != "fit")
    return spent * len(task.train) / len(state.stream[task.id - 1].train) if spent else 0.0


def _measured(state: SequenceState) -> int:
    trainer = state.trainer(enable_checkpointing=False, enable_progress_bar=False)
    tasks = state.stream[: state.n_tasks]
    data = merge_tasks(tasks, id=len(tasks) - 1, name="joint").train
    settings, world = state.settings, trainer.world_size
    each = samples_of_fit(
        -(-len(data) // world),
        state.batch_size,
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        accumulate=trainer.accumulate_grad_batches,
        drop_last=settings.drop_last,
        limit_batches=trainer.limit_train_batches,
        updates_per_batch=settings.updates_per_batch,
    )
    if each is None:
        return 0
    state.flops_per_sample = _per_sample(state, data)
    return round(state.flops_per_sample * each * world)


def _per_sample(state: SequenceState, data: Data) -> float:
    """Forward and backward of a few samples of all tasks, by a copy of the module that knows all classes."""
    with whole(state.module):
        module = copy.deepcopy(state.module)
    if hasattr(module, "learn_classes"):
        tasks = state.stream[: state.n_tasks]
        names = [state.stream.class_names[i] for i in range(1 + max(i for t in tasks for i in t.class_indices))]
        module.learn_classes(names, [t.class_indices for t in tasks])
    batch: Any = data.batch(torch.linspace(0, len(data) - 1, min(MEASURED, len(data))).long())
    # dropout draws random numbers, and a module without a Trainer warns at every self.log
    with _compat.seeded(derive_seed(state.settings.seed, "compute")), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        module.train()
        with _compat.muted_logging(module), flop_counter() as counter:
            output = _compat.training_step_of(module)(_compat.move_batch(None, module, batch), 0)
            (output["loss"] if isinstance(output, dict) else output).backward()
    return counter.get_total_flops() / batch_size(batch)


def _why(state: SequenceState) -> str:
    """What went wrong when it was measured."""
    try:
        found = _measured(state)
    except Exception as error:
        return f" ({type(error).__name__}: {shortened(error)})"
    return "" if found else " (no end of training, or no matrix products)"
