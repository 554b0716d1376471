"""Which groups of a pretrained model to train, from its gradients on the data at hand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl.callbacks._snapshot import kept_state
from lightning_cl.errors import InputError
from lightning_cl.finetuning._auto_choice import Choice, decide
from lightning_cl.finetuning._auto_loss import loss_function
from lightning_cl.finetuning._probe import NoProbe, Probe, fit_head
from lightning_cl.finetuning.depth_groups import DepthGroup, depth_groups
from lightning_cl.finetuning.selectors import head_of
from lightning_cl.functional.gradient_norms import GroupNorms, relative_gradient_norms
from lightning_cl.functional.seeding import derive_seed

__all__ = ["Choice", "auto_phases", "choose_groups"]


def choose_groups(
    module: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    groups: Sequence[DepthGroup] | None = None,
    *,
    head: Literal["probe", "as_is"] = "probe",
    threshold: float = 0.5,
    max_batches: int = 8,
    seed: int = 0,
) -> Choice:
    """The groups with the largest relative gradient norms, RGN (surgical fine-tuning, Lee et al. 2022).

    RGN of a group is the mean over batches of its gradient norm, over the norm of its weights, in eval mode.

    * ``head="probe"``: the head is fitted first, on every second batch, as a linear probe would be; the gradients are
      those of the other batches. Through a new head, gradients are noise, and a head that labels have moved away from
      pulls every layer. If the fitted head explains the held out labels (its cross-entropy is at most a tenth of that
      of guessing by frequencies), nothing else is trained: what remains is no reason to change features. Else the head
      is trained, and each other group whose RGN is at least ``threshold`` of the largest among them.
    * ``head="as_is"``: the paper's criterion, for a model whose head has learnt these classes: every group, the head
      like any other, whose RGN is at least ``threshold`` of the largest.

    Weights, gradients, ``requires_grad``, buffers, modes, loggers and random generators are as before. In a distributed
    job every process has to call this; norms and losses are averaged, so that all choose alike.

    Args:
        module: The model: a LightningModule, whose ``training_step`` gives the loss; or any module of tensors (x, y)
            with integer labels, or of a mapping that has ``.loss``.
        batches: A few, on the module's device or on the CPU; more than ``max_batches`` are not looked at.
        loss_fn: ``(module, batch) -> loss`` in place of these.
        groups: The model's depth groups; found by :func:`~lightning_cl.depth_groups`.
        head: See above.
        threshold: In (0, 1].
        max_batches: At most so many.
        seed: Of what is random in the module's loss.

    Raises:
        InputError: For arguments that are none, no batches, or gradients that are not finite.
    """
    if head not in ("probe", "as_is"):
        raise InputError(f"head={head!r}", "'probe' or 'as_is'", "leave it out for 'probe'")
    if not 0 < threshold <= 1:
        raise InputError(f"threshold={threshold!r}", "a number in (0, 1]", "leave it out for 0.5")
    if max_batches < 1:
        raise InputError(f"max_batches={max_batches!r}", "an integer >= 1", "leave it out for 8")
    found = list(groups) if groups is not None else depth_groups(module)
    if not found:
        raise InputError("groups=[]", "the model's depth groups", "leave it out")
    with _untouched(module, seed):
        trainer = getattr(module, "_trainer", None)
        # a loader may draw from the global generators, which are put back
        taken = [_compat.move_batch(trainer, module, batch) for batch in islice(batches, max_batches)]
        if not taken:
            raise InputError("no batches", "one at least, of the data to be learnt", "check the loader's length")
        loss = loss_fn or loss_function(module)
        probe, note = None, ""
        if head == "probe":
            probe, note = _probed(module, found, loss, taken)
        with _fitted_head(module, found, probe):
            norms = _norms(module, found, loss, taken if probe is None else taken[1::2] or taken)
    return decide(found, norms, threshold, probe, note)


def auto_phases(
    module: nn.Module, data: Any, groups: Sequence[DepthGroup] | None = None, *, head_epochs: int = 1, **options: Any
) -> tuple[list[dict[str, Any]], str]:
    """The phases of a freezing schedule that :func:`choose_groups` finds, and the explanation.

    Behind a fitted head these are two, as the choice was made: the head alone for ``head_epochs``, then what was chosen
    beside it; otherwise one.

    Args:
        module: The model.
        data: A DataModule, whose training batches are taken, or a loader or list of batches.
        groups: Depth groups.
        head_epochs: 0 thaws everything that was chosen from the start.
        options: Of :func:`choose_groups`.

    Raises:
        InputError: As :func:`choose_groups`.
    """
    if isinstance(head_epochs, bool) or not isinstance(head_epochs, int) or head_epochs < 0:
        raise InputError(f"head_epochs={head_epochs!r}", "an integer >= 0", "leave it out for 1")
    found = list(groups) if groups is not None else depth_groups(module)
    with _place_kept(data.train_dataloader() if hasattr(data, "train_dataloader") else data) as loader:
        choice = choose_groups(module, loader, groups=found, **options)
    last = head_of(found)
    others = [name for name in choice.groups if name != last]
    phases: list[dict[str, Any]] = [{"thaw": list(choice.groups)}]
    if choice.probed and head_epochs and others:
        phases = [{"thaw": [last]}, {"thaw": others, "epoch": head_epochs}]
    return phases, choice.explanation()


@contextmanager
def _place_kept(loader: Any) -> Iterator[Any]:
    """A loader of ours goes on where it was."""
    state = loader.state_dict() if hasattr(loader, "load_state_dict") and hasattr(loader, "plain") else None
    try:
        yield loader
    finally:
        if state is not None:
            loader.load_state_dict(state)


@contextmanager
def _untouched(module: nn.Module, seed: int) -> Iterator[None]:
    required = [(p, p.requires_grad) for p in module.parameters()]
    with ExitStack() as stack:
        stack.enter_context(_compat.seeded(derive_seed(seed, "auto_freeze")))
        stack.enter_context(kept_state(module))
        stack.enter_context(_compat.muted_logging(module))
        stack.enter_context(_compat.evaluating(module))
        stack.enter_context(torch.enable_grad())
        for parameter, _ in required:
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, flag in required:
                parameter.requires_grad_(flag)


def _probed(module: nn.Module, groups: Sequence[DepthGroup], loss: Any, batches: list[Any]) -> tuple[Probe | None, str]:
    """A fitted head, or why there is none."""
    modules = groups[-1].modules
    if not modules:
        return None, "the head is not a module of its own"
    if len(batches) < 2:
        return None, "two batches are needed, one to fit on and one to judge by"
    head = module.get_submodule(modules[-1])
    try:
        probe = fit_head(head, lambda batch: loss(module, batch), batches[::2], batches[1::2])
    except NoProbe as reason:
        return None, str(reason)
    return Probe(probe.weights, *_averaged([probe.loss, probe.guess], module)), ""


@contextmanager
def _fitted_head(module: nn.Module, groups: Sequence[DepthGroup], probe: Probe | None) -> Iterator[None]:
    if probe is None:
        yield
        return
    head = module.get_submodule(groups[-1].modules[-1])
    before = {name: p.data for name, p in head.named_parameters()}
    try:
        for name, parameter in head.named_parameters():
            parameter.data = probe.weights[name]
        yield
    finally:
        for name, parameter in head.named_parameters():
            parameter.data = before[name]


def _norms(module: nn.Module, groups: Sequence[DepthGroup], loss: Any, batches: list[Any]) -> dict[str, GroupNorms]:
    named = {name: p for name, p in module.named_parameters() if p.is_floating_point()}

    def gradients() -> Iterator[dict[str, Tensor | None]]:
        for batch in batches:
            value = loss(module, batch)
            if not isinstance(value, Tensor) or not value.requires_grad:
                raise InputError("a loss without a gradient", "one of the parameters", "give loss_fn")
            found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
            yield dict(zip(named, found, strict=True))

    own = {group.name: [name for name in group.parameters if name in named] for group in groups}
    try:
        norms = relative_gradient_norms(gradients(), named, own)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error).partition(";")[0], "finite gradients", "check data, loss and weights") from error
    means = _averaged([norm.gradient for norm in norms.values()], module)
    return {
        name: GroupNorms(mean, norm.weight, mean / norm.weight if norm.weight > 0 else 0.0)
        for (name, norm), mean in zip(norms.items(), means, strict=True)
    }


def _averaged(values: list[float], module: nn.Module) -> list[float]:
    """Their means over the processes of a distributed job."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    device = next(module.parameters()).device
    total = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return (total / distributed.get_world_size()).tolist()
