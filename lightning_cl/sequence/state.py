"""Where a sequence of tasks is: everything that is carried from one stage to the next."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_cl import _compat, signals
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.errors import InputError
from lightning_cl.sequence.lock import RunLock
from lightning_cl.sequence.settings import Settings

LIGHTNING = ("lightning.", "pytorch_lightning.")


@dataclass(frozen=True)
class Stage:
    """One resumable step of learning a task.

    A callback adds stages by a method ``stages() -> list[Stage]``. A stage that is killed is run again from the end of
    the one before it; it must depend on ``state`` and ``task`` only.

    Args:
        name: Unique among the stages of a method.
        run: ``(state, task) -> None``; needs no gradient.
        after: Name of the stage behind which it stands; None for before all others.
    """

    name: str
    run: Callable[["SequenceState", Any], None]
    after: str | None = "fit"


@dataclass
class SequenceState:
    """A module, its stream, its method's callbacks, and what has been measured so far.

    ``progress`` holds plain values only (it is written to disk after every stage); ``optimizer`` is the state that
    ``optimizer_state="keep"`` carries over, by parameter name.
    """

    module: Any
    stream: Any
    callbacks: Sequence[Any]
    settings: Settings
    progress: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    initial_module: Any = None
    opened: bool = False  # whether the run folder has been looked at
    lock: RunLock | None = None  # on the run folder
    joint_flops: int | None = None  # measured when it is first asked for; 0 where it cannot be
    flops_per_sample: float = 0.0  # of training on all classes, measured with it

    def __post_init__(self) -> None:
        """Start with nothing learnt."""
        self.progress = self.progress or {
            "task": 0,  # the task being learnt
            "stage": 0,  # how many of its stages are done
            "rows": {},  # task learnt -> accuracy on each task (None where not evaluated)
            "validation_rows": {},
            "random_init": None,
            "seconds": {},  # task -> stage -> seconds
            "steps": {},
            "flops": {},  # task -> stage -> FLOPs
            "evaluation_flops": 0,
            "continual": [],
            "peak_rss": 0,
        }
        if self.settings.reinitialize and self.initial_module is None:
            self.initial_module = copy.deepcopy(self.module)
        if not self.has_boundaries:
            refuse_boundaries(self.callbacks, self.stream)
        trained = self.stream[: min(self.n_tasks, self.settings.trained_tasks or self.n_tasks)]
        for callback in self.method_callbacks:
            # all tasks at once are one fit, which looks at them itself
            callback.refuse_tasks(trained if self.settings.training_data != "all" else trained[-1:])
            callback.consolidate_when = "manual"

    @property
    def has_boundaries(self) -> bool:
        """Whether methods may know where a task ends."""
        return getattr(self.stream, "has_boundaries", True)

    @property
    def batch_size(self) -> int:
        """Training samples per batch: the one that was found, if one was searched for."""
        return self.progress.get("tuned", {}).get("batch_size", self.settings.batch_size)

    @property
    def method_callbacks(self) -> list[MethodCallback]:
        """Callbacks that consolidate."""
        return [c for c in self.callbacks if isinstance(c, MethodCallback)]

    @contextmanager
    def as_fitted(self) -> Iterator[None]:
        """Inside the block, what a schedule among the callbacks has not thawed requires no gradient."""
        with ExitStack() as stack:
            for callback in self.callbacks:
                if hasattr(callback, "as_fitted"):
                    stack.enter_context(callback.as_fitted(self.module))
            yield

    @property
    def n_tasks(self) -> int:
        """Tasks to be learnt."""
        return min(len(self.stream), self.settings.limit_tasks or len(self.stream))

    @property
    def boundary(self) -> str:
        """Name of the boundary that was reached last."""
        return f"task{self.progress['task']:04d}-stage{self.progress['stage']}"

    def fit_checkpoint(self) -> Path | None:
        """The file from which a killed fit of the present stage goes on."""
        run_dir = self.settings.run_dir
        return run_dir / "checkpoints" / f"fit-{self.boundary}.ckpt" if run_dir is not None else None

    def fit_callbacks(self) -> list[Any]:
        """The callbacks for one fit; Lightning's own (EarlyStopping) count within a fit: each gets new copies."""
        return [copy.deepcopy(c) if type(c).__module__.startswith(LIGHTNING) else c for c in self.callbacks]

    def trainer(self, *, first: Sequence[Any] = (), **keywords: Any) -> Any:
        """A new Trainer with the user's settings, and these over them; callbacks are added to the user's.

        Args:
            first: Callbacks before the user's.
            **keywords: The Trainer's; ``callbacks`` stand behind the user's.
        """
        from lightning.pytorch import Trainer

        factory: Any = self.settings.trainer or Trainer
        own = list(getattr(factory, "keywords", {}).get("callbacks") or [])
        keywords["callbacks"] = [*first, *copy.deepcopy(own), *keywords.get("callbacks", [])]
        keywords.setdefault("logger", False)
        defaults: dict[str, Any] = {
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
        }
        given = getattr(factory, "keywords", {})
        if "strategy" in given:
            # an object remembers the Trainer that it was made for
            keywords.setdefault("strategy", copy.deepcopy(given["strategy"]))
        trainer = factory(**{k: v for k, v in defaults.items() if k not in given}, **keywords)
        if signals.active():
            _compat.leave_signals_alone(trainer)
        return trainer

    def record(self, kind: str, task: int, stage: str, value: float) -> None:
        """Add a value to ``progress[kind][task][stage]``."""
        table = self.progress[kind].setdefault(str(task), {})
        table[stage] = table.get(stage, 0) + value

    def timed(self, task: int, stage: str) -> "_Timer":
        """Time a block as part of a stage."""
        return _Timer(self, task, stage)


def refuse_boundaries(callbacks: Sequence[Any], stream: Any) -> None:
    """Refuse methods that need to know where a task ends, on a stream that does not say.

    Raises:
        InputError: With the name of the first of them.
    """
    for callback in callbacks:
        if getattr(callback, "needs_boundary", False):
            raise InputError(
                f"{type(callback).__name__} on stream {stream.name!r}, which has no task boundaries",
                "a method that works by the step",
                getattr(callback, "boundary_hint", "")
                or "use Replay(fill='step') or AGEM(policy='reservoir', fill='step')",
            )


class _Timer:
    def __init__(self, state: SequenceState, task: int, stage: str) -> None:
        self.state, self.task, self.stage = state, task, stage

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.state.record("seconds", self.task, self.stage, time.perf_counter() - self.start)
