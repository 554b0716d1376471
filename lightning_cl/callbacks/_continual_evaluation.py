"""Evaluation inside training, where the stability gap shows."""

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lightning_cl import _compat, _compat_loops
from lightning_cl.callbacks._flops import CountedLoader
from lightning_cl.errors import InputError
from lightning_cl.finetuning.batch_parts import split_batch
from lightning_cl.streams.loader import TaskLoader


class ContinualEvaluation(Callback):
    """Measures the accuracy on every task seen, every n steps (De Lange et al. 2023, arXiv:2205.13452).

    Needs a module with ``forward(x, task=None)`` that returns logits, as ours has. Its values are part of checkpoints.

    Args:
        state: The sequence; ``settings.evaluate_every_n_steps`` is n.
        task: The task being learnt.
    """

    def __init__(self, state: Any, task: Any) -> None:
        self.state, self.task = state, task
        self.rows: list[dict[str, Any]] = []
        self.flops = 0
        self._last = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse modules whose logits are not known."""
        if not hasattr(pl_module, "importance_logits"):
            raise InputError(
                f"evaluate_every_n_steps with {type(pl_module).__name__}", "a FineTuningModule", "leave it out"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Evaluate when n steps have passed."""
        step = trainer.global_step
        if step == self._last or step % self.state.settings.evaluate_every_n_steps:
            return
        self._last = step
        averaged = _compat_loops.averaged_weights(trainer, pl_module)
        with _compat.evaluating(pl_module), averaged, torch.no_grad():
            accuracy = [self._accuracy(trainer, pl_module, t) for t in self.state.stream[: self.task.id + 1]]
        self.rows.append({"task": self.task.id, "step": step, "accuracy": accuracy})

    def _accuracy(self, trainer: Any, module: Any, task: Any) -> float:
        correct = 0
        precision = trainer.precision_plugin
        with CountedLoader(TaskLoader(task.test, self.state.settings.eval_batch_size)) as loader:
            for batch in loader:
                x, y, own = split_batch(_compat.move_batch(None, module, batch))
                with precision.forward_context():
                    correct += int((module(precision.convert_input(x), own).argmax(1) == y).sum())
        self.flops += loader.flops
        return correct / len(task.test)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Hand the values over."""
        before = sum(self.state.progress["steps"].get(str(t), 0) for t in range(self.task.id))
        self.state.progress["continual"] += [{**row, "step": row["step"] + before} for row in self.rows]
        self.state.progress["evaluation_flops"] += self.flops

    def state_dict(self) -> dict[str, Any]:
        """Values of the fit so far."""
        return {"version": 1, "rows": list(self.rows), "last": self._last, "flops": self.flops}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.rows, self._last = list(state_dict["rows"]), state_dict["last"]
        self.flops = state_dict["flops"]
