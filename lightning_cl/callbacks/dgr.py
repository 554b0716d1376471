"""Deep generative replay."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl.callbacks._batch_parts import GeneratedParts, parts_of
from lightning_cl.callbacks._generator import ReplayGenerator
from lightning_cl.callbacks._hub import TrainingStepHub, loss_of, with_loss
from lightning_cl.callbacks._loss_weights import loss_weights, two_weights
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.callbacks._past_logits import groups_of, logits_of, read_over
from lightning_cl.callbacks._teacher import Teacher
from lightning_cl.errors import InputError
from lightning_cl.finetuning.vae import check_widths
from lightning_cl.functional.batches import rebuild
from lightning_cl.functional.distillation import distillation_loss
from lightning_cl.functional.masking import inactive_value
from lightning_cl.functional.seeding import derive_seed


class DGR(MethodCallback):
    r"""Replays samples that a VAE makes, labelled by the previous model: deep generative replay; stores no sample.

    Sources: Shin et al. 2017, arXiv:1705.08690; losses as van de Ven & Tolias 2019, arXiv:1904.07734, and its code.

    A VAE learns the inputs beside the model: one step of its own Adam on every training batch, in the same
    ``training_step``. From the second task on, each step draws a batch from the VAE as it was at the end of the task
    before; the model as it was then labels it, in eval mode, with the class of its largest logit. Both learn from it:
    the loss of the model is :math:`w_c L_{current} + w_r L_{replayed}`, where the second is the user's own
    ``training_step`` on the generated batch, silently, and so is that of the VAE, with the weights :math:`1/k` and
    :math:`1 - 1/k`, where k counts the tasks so far, the current one included. The VAE's loss of a sample is
    :func:`lightning_cl.functional.vae.vae_loss`. Because it learns in the same steps, a killed fit repeats no more of
    it than of the model, and it works with any Trainer.

    Batches are inputs and integer labels, as a tuple or a mapping with obvious names; inputs (N, ...) are floating,
    of one shape, and the generated ones have their device and dtype. With task ids, ``(x, y, task)``, the same
    generated inputs are replayed once for each earlier task, with its id and the previous model's label for it, and
    their mean is the replayed loss (as in van de Ven's code).

    State: the VAE (while it learns, the two moments of its Adam too), the decoder and the model of the task before, a
    random state, and the task ids seen: no sample. With 784 inputs and the default widths that is 6.5 MB (while it
    learns 15 MB) and the size of the model. It is no guarantee of privacy: see ``docs/privacy.md``.

    Not supported: manual optimization; modules whose ``training_step`` needs more than inputs, labels and task ids.

    Args:
        hidden: Widths of the VAE's hidden layers.
        latent: Width of its latent.
        decoder: ``"bernoulli"`` for inputs in [0, 1]; ``"gaussian"`` for any others (normalized ones).
        lr: Learning rate of its Adam.
        optimizer_state: What becomes of Adam's moments at the end of a task. ``"keep"`` is van de Ven's protocol; in a
            file they may be a multiple of one training input, so ``"reset"`` is the default.
        generator_steps: Steps of the VAE on each training batch; more where a task has few batches.
        batch_size: Generated samples per step (and process); as many as the current batch has by default.
        weights: ``"tasks"``, or the pair (current, replayed).
        labels: ``"hard"``, as above. ``"soft"``: the replayed loss is
            :func:`lightning_cl.functional.distillation_loss` to the previous model's logits, with a softmax over all
            classes that count now, new ones with the target 0 (van de Ven & Tolias's generative replay with
            distillation); ``training_step`` is not run on the generated batch.
        temperature: T > 0 of soft labels.
        logits_fn: ``(module, batch) -> logits (N, C)``, or a tuple that starts with them. By default the module's
            ``all_logits(batch)``, else ``module(x)`` or, with task ids, ``module(x, task)``.
        seed: Seed of the VAE's weights and of everything it draws.
        name, consolidate, select, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these; in ``setup`` and on training batches for what cannot work.
    """

    needs_data = False

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (400, 400),
        latent: int = 100,
        decoder: Literal["bernoulli", "gaussian"] = "bernoulli",
        lr: float = 1e-3,
        optimizer_state: Literal["reset", "keep"] = "reset",
        generator_steps: int = 1,
        batch_size: int | None = None,
        weights: Literal["tasks"] | Sequence[float] = "tasks",
        labels: Literal["hard", "soft"] = "hard",
        temperature: float = 2.0,
        logits_fn: Callable[..., Any] | None = None,
        seed: int = 0,
        name: str = "dgr",
        consolidate: Literal["auto", "manual"] = "auto",
        select: Literal["last", "best"] = "last",
        state_path: str | Path | None = None,
    ) -> None:
        super().__init__(name=name, consolidate=consolidate, select=select, state_path=state_path)
        check_widths(hidden, latent, decoder)
        if not isinstance(lr, int | float) or not 0 < lr < float("inf"):
            raise InputError(f"lr={lr!r}", "a finite number > 0", "try lr=1e-3")
        if optimizer_state not in ("reset", "keep"):
            raise InputError(f"optimizer_state={optimizer_state!r}", "'reset' or 'keep'", "leave it out for 'reset'")
        if not isinstance(generator_steps, int) or generator_steps < 1:
            raise InputError(f"generator_steps={generator_steps!r}", "an integer >= 1", "leave it out for 1")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"batch_size={batch_size!r}", "an integer >= 1, or None", "leave it out")
        if weights != "tasks" and not two_weights(weights):
            expected = "'tasks' or two finite numbers >= 0 (current, replayed)"
            raise InputError(f"weights={weights!r}", expected, "try weights=(0.5, 0.5)")
        if labels not in ("hard", "soft"):
            raise InputError(f"labels={labels!r}", "'hard' or 'soft'", "leave it out for 'hard'")
        if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
            raise InputError(f"temperature={temperature!r}", "a finite number > 0", "temperature=2.0 is the default")
        self.optimizer_state, self.generator_steps, self.batch_size = optimizer_state, generator_steps, batch_size
        self.labels, self.temperature = labels, temperature
        self.weights, self.logits_fn = weights, logits_fn
        self.generator = ReplayGenerator(hidden, latent, decoder, lr, derive_seed(seed, name))
        self.teacher = Teacher()
        self.groups: list[list[int]] = []
        self.task_ids: list[int] = []
        self.past_task_ids: list[int] = []
        self.replayed = 0
        self._trainer: Any = None
        self._module: Any = None
        self._hub: TrainingStepHub | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the generator, its optimizer, its last decoder and the last model."""
        return self.generator.nbytes + self.teacher.nbytes

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the current and the replayed loss, now."""
        return loss_weights(self.weights, self.n_tasks)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand behind the module's ``training_step``."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._trainer, self._module = trainer, pl_module
            self._hub = TrainingStepHub.attach(pl_module, self._two_losses, name=type(self).__name__)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        if self._hub is not None:
            self._hub.detach(self._two_losses)
        self._hub = self._trainer = self._module = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check that the step came by."""
        if self._hub is not None and batch is not None:
            self._hub.require_fired()

    def _two_losses(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        current = loss_of(output)
        if current is None:
            return output
        parts = parts_of(batch)
        weights = self.loss_weights
        with torch.autocast(parts.x.device.type, enabled=False):
            self._check(parts.x, batch_idx)
            inputs = None
            for _ in range(self.generator_steps):
                inputs = self._generated(parts) if self.teacher and weights[1] > 0 else None
                self.generator.step(parts.x.float(), inputs, weights, self._trainer)
            labelled = self._labelled(batch, parts, inputs) if inputs is not None else None
        if parts.task is not None:
            self.task_ids = sorted({*self.task_ids, *parts.task.unique().tolist()})
        if labelled is None:
            return output
        replayed = self._distilled(*labelled) if self.labels == "soft" else call(labelled[0])
        if replayed is None:
            return output
        return with_loss(output, weights[0] * current + weights[1] * replayed)

    def _check(self, x: Tensor, batch_idx: int) -> None:
        """Refuse inputs that the VAE cannot learn."""
        # on an accelerator, reading a value waits for it
        readable = x.device.type == "cpu" or batch_idx == 0
        if self.generator.options["decoder"] == "bernoulli" and readable and not bool(((x >= 0) & (x <= 1)).all()):
            low, high = (float(bound) for bound in x.aminmax())
            raise InputError(
                f"inputs between {low:.4g} and {high:.4g} for decoder='bernoulli'",
                "inputs in [0, 1]",
                "set decoder='gaussian' (callbacks.dgr.decoder=gaussian), or do not normalize the inputs",
            )
        vae = self.generator.vae
        if vae is not None and vae.input_shape != x.shape[1:]:
            raise InputError(
                f"inputs of shape {tuple(x.shape[1:])} for a generator of {vae.input_shape}",
                "inputs of one shape in all tasks",
                "resize or pad them",
            )

    def _generated(self, parts: GeneratedParts) -> Tensor:
        n = self.batch_size or len(parts.x)
        rank, world = (self._trainer.global_rank, self._trainer.world_size) if self._trainer is not None else (0, 1)
        self.replayed += n
        return self.generator.sample(n, parts.x.device, rank, world)

    def _labelled(self, batch: Any, parts: GeneratedParts, inputs: Tensor) -> tuple[Any, Tensor]:
        """The inputs as a batch with the previous model's labels, once for each past task; its logits for them."""
        tasks = self.past_task_ids if parts.task is not None else []
        x = inputs.to(parts.x.dtype)
        x = x.repeat(max(1, len(tasks)), *[1] * (x.dim() - 1))
        made: dict[str, Any] = {parts.x_path: x, parts.y_path: parts.y.new_zeros(len(x))}
        if parts.task is not None:
            ids = torch.tensor(tasks, dtype=parts.task.dtype, device=x.device)
            made[parts.task_path] = ids.repeat_interleave(len(inputs))
        with self.teacher.in_place_of(self._module):
            logits = logits_of(self._module, rebuild(batch, made), self.logits_fn, len(x))
        logits = read_over(logits, [] if self.logits_fn else self.groups, made.get(parts.task_path))
        made[parts.y_path] = logits.argmax(1).to(parts.y.dtype)
        return rebuild(batch, made), logits

    def _distilled(self, batch: Any, targets: Tensor) -> Tensor:
        """The distance of the model's softened predictions to the previous model's, on the generated batch."""
        logits = logits_of(self._module, batch, self.logits_fn, len(targets))
        read = read_over(logits, [] if self.logits_fn else groups_of(self._module), parts_of(batch).task)
        # a module that masks with -inf would make 0 * inf of it
        return distillation_loss(read.clamp_min(inactive_value(read.dtype)), targets, self.temperature)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        if self.generator.vae is None:
            raise InputError(
                "a task to consolidate on which nothing was trained",
                "a generator that has seen the task",
                "train the first task with DGR among the callbacks",
            )
        self.generator.keep(moments=self.optimizer_state == "keep")
        self.teacher.take(module)
        self.groups = groups_of(module)
        self.past_task_ids = list(self.task_ids)

    def _state(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "teacher": dict(self.teacher.tensors),
            "groups": [list(group) for group in self.groups],
            "task_ids": list(self.task_ids),
            "past_task_ids": list(self.past_task_ids),
            "replayed": self.replayed,
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.teacher.tensors = dict(state["teacher"])
        self.groups = [list(group) for group in state["groups"]]
        self.task_ids, self.past_task_ids = list(state["task_ids"]), list(state["past_task_ids"])
        self.replayed = state["replayed"]
