"""Between the weights before fine-tuning and those after it."""

import logging
import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_cl.callbacks._alpha_curve import Line, best_alpha, mean, validated
from lightning_cl.callbacks._class_rows import BEHIND, class_rows, refuse_other_rows
from lightning_cl.callbacks._gather import from_first
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.errors import InputError
from lightning_cl.finetuning._adapter_record import record_of
from lightning_cl.functional.seeding import derive_seed

log = logging.getLogger(__name__)
ALPHAS = tuple(i / 10 for i in range(11))


class WiSEFT(MethodCallback):
    r"""After each fit, moves the weights back towards those before it (Wortsman et al. 2022, arXiv:2109.01903).

    .. math:: \theta = (1 - \alpha)\,\theta_0 + \alpha\,\theta_{ft}

    :math:`\theta_0` are the weights that the fit began with (pretrained ones, or the task's before), or always the
    first. Running statistics of BatchNorm are interpolated too; rows of classes that are new are the fine-tuned ones
    at every alpha (:func:`~lightning_cl.functional.interpolate`). Training itself is not changed.

    In ``run_sequence`` it is a stage between the fit and what other methods take from the model. There the metric at
    every alpha is kept in ``results.json`` (``interpolation``) and drawn in the report: on the task's validation data
    if there are any, on the test data of every task seen, and with ``evaluate_future=true`` also of later ones whose
    classes are known (other domains: distribution shift). Test data never choose. In a Trainer of your own it acts at
    the end of each fit, where it has to stand before methods that consolidate; checkpoints that were written during the
    fit hold the fine-tuned weights.

    State: the weights before (as large as the model), the alpha and curve of the last task.

    Args:
        choose: ``"val"``: alpha with the best metric on the task's validation data, the smaller of equals.
            ``"val_seen"``: with the best mean over the validation data of all tasks seen, which have to be there still
            (``run_sequence`` only). Or a number from 0 to 1, for every task.
        alphas: Where to measure. With a number in ``choose``, ``[]`` measures nothing.
        anchor: ``"previous"``: the weights before each fit; ``"pretrained"``: those before the first.
        fine_tuned: Regular expressions on names in the state dict: entries that are the fine-tuned model's at every
            alpha. Give a new head's, which started at random: ``fine_tuned="^fc\."``. Heads of ours need none.
        batch_norm: ``"interpolate"``, or ``"reestimate"`` running statistics on the task's training data at every
            alpha (one pass each; layers whose statistics the fit has not changed keep them).
        test_curve: Whether ``run_sequence`` measures on test data too.
        monitor, mode: Validation metric of ``"val"`` in a Trainer of your own, ``"max"`` or ``"min"``; in
            ``run_sequence`` it is the run's.
        name, consolidate, select, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these, ``"val"`` without validation data, or with several processes in a Trainer
            of your own.
    """

    needs_data = False
    changes_weights = True

    def __init__(
        self,
        choose: Literal["val", "val_seen"] | float = "val",
        *,
        alphas: Sequence[float] = ALPHAS,
        anchor: Literal["previous", "pretrained"] = "previous",
        fine_tuned: str | Sequence[str] = (),
        batch_norm: Literal["interpolate", "reestimate"] = "interpolate",
        test_curve: bool = True,
        monitor: str = "val_accuracy",
        mode: Literal["max", "min"] = "max",
        name: str = "wise_ft",
        **method: Any,
    ) -> None:
        super().__init__(name=name, **method)
        fixed = not isinstance(choose, str)
        if (fixed and not _is_share(choose)) or (not fixed and choose not in ("val", "val_seen")):
            raise InputError(f"choose={choose!r}", "'val', 'val_seen' or a number from 0 to 1", "choose='val'")
        if isinstance(alphas, str) or not all(_is_share(alpha) for alpha in alphas) or not (fixed or alphas):
            raise InputError(f"alphas={alphas!r}", "numbers from 0 to 1", "leave it out for 0, 0.1, ... 1")
        for key, value, allowed in (
            ("anchor", anchor, ("previous", "pretrained")),
            ("batch_norm", batch_norm, ("interpolate", "reestimate")),
            ("mode", mode, ("max", "min")),
        ):
            if value not in allowed:
                raise InputError(
                    f"{key}={value!r}", f"{allowed[0]!r} or {allowed[1]!r}", f"leave it out for {allowed[0]!r}"
                )
        try:
            self.fine_tuned = [re.compile(p) for p in ([fine_tuned] if isinstance(fine_tuned, str) else fine_tuned)]
        except (re.error, TypeError) as error:
            raise InputError(
                f"fine_tuned={fine_tuned!r} ({error})", "regular expressions", r"fine_tuned='^fc\.'"
            ) from error
        extra = [float(choose)] if fixed and alphas else []
        self.choose, self.alphas = choose, sorted({float(alpha) for alpha in alphas} | set(extra))
        self.anchor, self.batch_norm, self.test_curve = anchor, batch_norm, test_curve
        self.monitor, self.mode = monitor, mode
        self.alpha: float | None = None
        self.curve: list[float | None] = []
        self.done = 0  # tasks whose weights have been moved
        self._before: dict[str, Any] = {}
        self._rows: dict[str, list[str]] = {}  # class names of its classifier, if it knows them
        self._in_a_sequence = False

    @property
    def nbytes(self) -> int:
        """Bytes of the weights before."""
        return sum(value.nbytes for value in self._before.values() if isinstance(value, Tensor))

    # the weights before a fit ---------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the weights, before the head grows; those in a checkpoint are loaded over them."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        several = trainer.world_size > 1 and isinstance(self.choose, str)
        if not self._in_a_sequence and (several or self.choose == "val_seen"):
            raise InputError(
                f"choose={self.choose!r} with WiSEFT in a Trainer of {trainer.world_size} process(es)",
                "a number, or run_sequence",
                "give a fixed alpha: choose=0.5",
            )
        behind = trainer.callbacks[trainer.callbacks.index(self) + 1 :] if self in trainer.callbacks else []
        if any(getattr(callback, "adds_parameters", False) for callback in behind) and not record_of(pl_module):
            raise InputError(
                "WiSEFT before Adapters, whose weights before the fit it would not know",
                "Adapters first",
                "callbacks=[Adapters(...), WiSEFT(...)], or method=[lora,wise_ft]",
            )
        if not self._before:
            self._before = {
                name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
                for name, value in pl_module.state_dict().items()
            }
            self._rows = class_rows(pl_module)
            self._refuse_unknown()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """DDP has given every process the first one's weights by now: their weights before are the first one's too."""
        tensors = {name: value for name, value in self._before.items() if isinstance(value, Tensor)}
        shared = from_first(tensors, trainer.strategy.root_device)
        self._before.update({name: value.cpu() for name, value in shared.items()})
        held = [name for name in self._rows if not self._taken(name)]
        refuse_other_rows(pl_module, held, self._rows, f"{BEHIND}, or take the new head: fine_tuned={{!r}}")
        super().on_fit_start(trainer, pl_module)

    def _refuse_unknown(self) -> None:
        for pattern in self.fine_tuned:
            if not any(pattern.search(name) for name in self._before):
                some = ", ".join(list(self._before)[-4:])
                raise InputError(f"fine_tuned={pattern.pattern!r}", "a name in the state dict", f"some are {some}")

    def _taken(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self.fine_tuned)

    # a Trainer of your own ------------------------------------------------------------------------------------------

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        if self.done <= self.n_tasks:
            if not self._before:
                raise InputError("WiSEFT.consolidate without a fit", "weights before and after", "fit with it first")
            if self.choose == "val" and trainer is None:
                raise InputError("WiSEFT.consolidate(None, ...) with choose='val'", "a Trainer", "choose=0.5")
            batches = (lambda: trainer.train_dataloader) if self._reestimates(module, trainer) else None
            line = Line(module, self._before, self._taken, batches, trainer)
            measure = (lambda: validated(trainer, module, self.monitor)) if self.choose == "val" else None
            self.curve = []
            for alpha in self.alphas if measure else ():
                line.go_to(alpha)
                self.curve.append(measure())  # type: ignore[misc]
            self._stay(line, self.curve, self.mode == "max")
        if self.anchor == "previous":
            self._before = {}

    def _reestimates(self, module: Any, data: Any) -> bool:
        if self.batch_norm == "interpolate":
            return False
        if not getattr(module, "automatic_optimization", True) or data is None:
            raise InputError(
                f"batch_norm='reestimate' with {type(module).__name__}",
                "training data, and a training_step that does not step its optimizers",
                "leave it out for 'interpolate'",
            )
        return True

    def _stay(self, line: Line, values: Sequence[float | None], higher_is_better: bool) -> None:
        """Go to the alpha that the config or the values say."""
        chosen = best_alpha(self.alphas, values, higher_is_better) if isinstance(self.choose, str) else self.choose
        self.alpha = float(chosen)
        line.go_to(self.alpha)
        self.done = self.n_tasks + 1
        log.info("%s: alpha = %g", self.state_key, self.alpha)

    # a sequence -----------------------------------------------------------------------------------------------------

    def stages(self) -> list[Any]:
        """``wise_ft``, between the fit and what is taken from the model."""
        from lightning_cl.sequence.state import Stage

        self._in_a_sequence = True
        return [Stage(self.name, self._run, after="fit")]

    def _run(self, state: Any, task: Any) -> None:
        from lightning_cl.sequence.evaluation import measured
        from lightning_cl.sequence.stages import task_data

        module, settings = state.module, state.settings
        module.to(state.trainer().strategy.root_device)
        sets = self._sets(state, task)
        data = task_data(state, task)
        data.seed = derive_seed(settings.seed, self.name, task.id)
        line = Line(
            module, self._before, self._taken, data.train_dataloader if self._reestimates(module, data) else None
        )
        rows: list[list[float | None]] = []
        for alpha in self.alphas if sets else ():
            line.go_to(alpha)
            rows.append(measured(state, module, [part for _, _, part in sets])[settings.metric])
        columns = [list(column) for column in zip(*rows, strict=True)]
        held_out = [values for (kind, _, _), values in zip(sets, columns, strict=False) if kind == "validation"]
        self.curve = [mean(values) for values in zip(*held_out, strict=True)]
        self._stay(line, self.curve, settings.higher_is_better)
        state.progress.setdefault("interpolation", {}).setdefault(self.name, {})[str(task.id)] = {
            "alpha": self.alpha,
            "choose": self.choose,
            "anchor": self.anchor,
            "alphas": self.alphas if sets else [],
            "validation": self.curve or None,
            "test": {n: v for (kind, n, _), v in zip(sets, columns, strict=False) if kind == "test"},
        }

    def _sets(self, state: Any, task: Any) -> list[tuple[str, str, Any]]:
        """What to measure on: kind, name, data."""
        if not self.alphas:
            return []
        seen = state.stream[: task.id + 1]
        wanted = seen if self.choose == "val_seen" else [task]
        sets = [("validation", each.name, each.validation) for each in wanted if each.validation is not None]
        if isinstance(self.choose, str) and len(sets) < len(wanted):
            raise InputError(
                f"choose={self.choose!r} without validation data",
                "a validation split",
                "set validation_fraction=0.1, or a fixed alpha: choose=0.5",
            )
        tests = list(seen)
        if state.settings.evaluate_future:
            known = {index for each in seen for index in each.class_indices}
            tests += [each for each in state.stream[len(seen) :] if known.issuperset(each.class_indices)]
        return sets + ([("test", each.name, each.test) for each in tests] if self.test_curve else [])

    def _state(self) -> dict[str, Any]:
        rows = {"rows": self._rows} if self._rows else {}
        return {"before": dict(self._before), "alpha": self.alpha, "curve": list(self.curve), "done": self.done, **rows}

    def _load(self, state: dict[str, Any]) -> None:
        self._before, self.alpha = dict(state["before"]), state["alpha"]
        self.curve, self.done, self._rows = list(state["curve"]), state["done"], state.get("rows", {})


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
