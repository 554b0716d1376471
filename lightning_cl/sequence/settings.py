"""What a sequence of tasks is run with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_cl.errors import InputError
from lightning_cl.sequence.fit_options import check_early_stopping, check_tune


@dataclass
class Settings:
    """How a sequence is learnt; everything here has a default.

    Args:
        run_dir: Folder of checkpoints and results; None keeps nothing on disk.
        method: Name in tables and results.
        trainer: ``**keywords -> Trainer``, called anew for every task, for example
            ``functools.partial(Trainer, max_epochs=5)``.
        loggers: ``save_dir -> logger`` callables, called anew for every task.
        training_data: What each fit sees: the ``"current"`` task, the tasks ``"seen"`` so far, or ``"all"`` tasks at
            once (then there is one fit, of the last task).
        budget: What all training may cost, as a share of joint's compute (see :mod:`lightning_cl.sequence.compute`);
            None for no limit.
        trained_tasks: Only so many tasks are trained; the model is kept as it is for the rest, which are only tested.
        reinitialize: Whether each fit starts from the initial weights.
        optimizer_state: ``"reset"`` at each task, or ``"keep"``, as a stream without boundaries always does.
        batch_size, eval_batch_size, num_workers, drop_last, updates_per_batch: Of the tasks' loaders.
        seed: Decides order, augmentation and every random number of a stage.
        metric: Name of the metric that the module logs in ``test_step`` (``test_<metric>``).
        higher_is_better: Whether more of it is good.
        resume: ``"auto"`` goes on in ``run_dir``; ``"never"`` starts anew.
        checkpoint_every_n_steps: The most optimizer steps that a killed run repeats.
        select: Weights that a fit ends with: ``"last"``, or the ``"best"`` by ``monitor`` on validation data.
        monitor: Metric of ``select="best"``.
        monitor_mode: ``"max"`` or ``"min"``.
        early_stopping: ``{"patience": 3}`` ends each fit after so many validations without a better ``monitor`` (or its
            own ``monitor``, ``mode``, ``min_delta`` and so on, as of Lightning's ``EarlyStopping``); every task counts
            anew. None, or no patience, for never.
        tune: ``{"lr_find": True}``, ``{"scale_batch_size": "power"}`` or both: searched once, before the first task, by
            Lightning's ``Tuner``; ``lr`` and ``batch_size`` in it are options for these. See
            :mod:`lightning_cl.sequence.tuning`.
        evaluate_future: Evaluate tasks that are still to come too (forward transfer).
        evaluate_random_init: Evaluate every task before any training (forward transfer).
        evaluate_every_n_steps: Evaluate inside training, for the stability gap.
        limit_tasks: Learn only the first tasks of the stream.
        config: Plain values that identify the run; a half-done run refuses others.
        progress_bar: Whether a fit shows one.
    """

    run_dir: Path | None = None
    method: str = "naive"
    trainer: Callable[..., Any] | None = None
    loggers: Sequence[Callable[..., Any]] = ()
    training_data: Literal["current", "seen", "all"] = "current"
    budget: float | None = None
    trained_tasks: int | None = None
    reinitialize: bool = False
    optimizer_state: Literal["reset", "keep"] = "reset"
    batch_size: int = 128
    eval_batch_size: int = 1000
    num_workers: int = 0
    drop_last: bool = False
    updates_per_batch: int = 1
    seed: int = 0
    metric: str = "accuracy"
    higher_is_better: bool = True
    resume: Literal["auto", "never"] = "auto"
    checkpoint_every_n_steps: int = 500
    select: Literal["last", "best"] = "last"
    monitor: str = "val_accuracy"
    monitor_mode: Literal["max", "min"] = "max"
    early_stopping: dict[str, Any] | None = None
    tune: dict[str, Any] | None = None
    evaluate_future: bool = False
    evaluate_random_init: bool = False
    evaluate_every_n_steps: int | None = None
    limit_tasks: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    progress_bar: bool = True

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        self.run_dir = Path(self.run_dir) if self.run_dir is not None else None
        choices = {
            "training_data": ("current", "seen", "all"),
            "optimizer_state": ("reset", "keep"),
            "resume": ("auto", "never"),
            "select": ("last", "best"),
            "monitor_mode": ("max", "min"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r}", f"one of {', '.join(allowed)}", "leave it out")
        for name in ("batch_size", "eval_batch_size", "updates_per_batch", "checkpoint_every_n_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}", "an integer >= 1", "leave it out for the default")
        if not isinstance(self.seed, int):
            raise InputError(f"seed={self.seed!r}", "an integer", "set seed=0")
        if not isinstance(self.num_workers, int) or self.num_workers < 0:
            raise InputError(f"num_workers={self.num_workers!r}", "an integer >= 0", "set num_workers=0")
        if self.limit_tasks is not None and (not isinstance(self.limit_tasks, int) or self.limit_tasks < 1):
            raise InputError(f"limit_tasks={self.limit_tasks!r}", "an integer >= 1, or null", "leave it out")
        if self.budget is not None and (
            isinstance(self.budget, bool)
            or not isinstance(self.budget, int | float)
            or not 0 < self.budget < float("inf")
        ):
            expected = "a finite number > 0 (1 is what joint costs), or null"
            raise InputError(f"budget={self.budget!r}", expected, "set budget=0.1")
        kept = self.trained_tasks
        if kept is not None and (isinstance(kept, bool) or not isinstance(kept, int) or kept < 1):
            raise InputError(f"trained_tasks={kept!r}", "an integer >= 1, or null", "leave it out")
        if kept is not None and self.training_data == "all":
            expected = "training_data='current' or 'seen'"
            raise InputError(f"trained_tasks={kept!r} with training_data='all'", expected, "leave trained_tasks out")
        check_early_stopping(self.early_stopping)
        check_tune(self.tune)
        every = self.evaluate_every_n_steps
        if every is not None and (not isinstance(every, int) or every < 1):
            raise InputError(f"evaluate_every_n_steps={every!r}", "an integer >= 1, or null", "leave it out")
