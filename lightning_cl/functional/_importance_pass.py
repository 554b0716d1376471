"""One pass over a task's data for an importance: eval mode, a seeded subset, accumulators, the mean at the end."""

import logging
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.functional._importance_engine import Engine, MakeCotangents, OutputsFn
from lightning_cl.functional._sample_by_sample import FALLBACKS
from lightning_cl.functional.seeding import generator

_log = logging.getLogger(__name__)
AddBatch = Callable[[Mapping[str, Tensor], dict[str, Tensor], Any], int]


def mean_over_samples(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    what: str,
    outputs_fn: OutputsFn | None = None,
    make_cotangents: MakeCotangents | None = None,
    add_batch: AddBatch | None = None,
    parameters: Mapping[str, Tensor] | None,
    power: int,
    n_samples: int | None,
    max_bytes: int,
    fallback: str,
    distributed: bool,
    seed: int,
) -> dict[str, Tensor]:
    """Mean over samples of what the engine, or ``add_batch(parameters, sums, batch) -> count``, adds for each batch.

    Args:
        what: Name in the log and in errors.
        add_batch: In place of the engine, ``outputs_fn`` and ``make_cotangents``.
        module, loader, parameters, n_samples, max_bytes, fallback, distributed, seed: See
            :func:`lightning_cl.functional.diagonal_fisher`.
        outputs_fn, make_cotangents, power: See :class:`Engine`.

    Raises:
        ValueError: on bad counts, no parameters, no samples, or a result that is not finite.
    """
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback={fallback!r}; expected one of {', '.join(FALLBACKS)}. HINT: auto is the default")
    parameters = trainable(module, parameters)
    with evaluating(module), torch.inference_mode(False), torch.enable_grad():
        sums = {
            name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32), requires_grad=False)
            for name, value in parameters.items()
        }
        batches = subset(loader, n_samples, seed)
        if distributed:
            batches = _own(batches)
        looped, vmapped = list(parameters), []
        if add_batch is not None:
            count = sum(add_batch(parameters, sums, batch) for batch in batches)
        else:
            assert outputs_fn is not None
            assert make_cotangents is not None
            options: dict[str, Any] = {"power": power, "max_bytes": max_bytes, "fallback": fallback, "seed": seed}
            engine = Engine(module, parameters, sums, outputs_fn, make_cotangents, **options)
            count = sum(engine.add(batch) for batch in batches)
            looped, vmapped = list(engine.slow.looped), list(engine.slow.vmapped)
    if distributed:
        count = _reduced(sums, count)
    if count == 0:
        raise ValueError("loader gave no samples; expected at least one. HINT: check the task's training data")
    _log.info(
        "%s of %d samples: %d parameters in closed form, %d sample by sample%s%s",
        what,
        count,
        len(parameters) - len({*looped, *vmapped}),
        len({*looped, *vmapped}),
        f" in a loop ({', '.join(looped)})" if looped else "",
        f" vmapped ({', '.join(vmapped)})" if vmapped else "",
    )
    for name, value in sums.items():
        # a zero may have been rounded to below it; NaN stays
        value.div_(count).clamp_min_(0)
        if not value.isfinite().all():
            raise ValueError(
                f"{what} of {name!r} is not finite; expected finite numbers. HINT: look for NaN or inf in "
                "the weights (a training that diverged) or in the data"
            )
    return sums


def trainable(module: nn.Module, parameters: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """These parameters, or all that require a gradient.

    Raises:
        ValueError: if there are none, or some require no gradient.
    """
    if parameters is None:
        parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    fixed = [name for name, value in parameters.items() if not value.requires_grad]
    if fixed or not parameters:
        given = f"parameters that need no gradient: {fixed}" if fixed else "no parameters"
        raise ValueError(f"{given}; expected some that require a gradient. HINT: leave out what is frozen")
    return parameters


def default_outputs(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    """``module(inputs), targets`` of a pair; of a mapping, ``module(**batch).logits`` and its labels, as HF has it."""
    device = next(module.parameters()).device
    if isinstance(batch, Mapping | UserDict):  # HF's BatchEncoding is the latter
        named = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        label = next((name for name in ("labels", "label", "targets", "target") if name in named), None)
        targets = named.pop(label) if label is not None else None
        try:
            output = module(**named)
        except TypeError as error:
            raise ValueError(
                f"batch with {', '.join(map(str, batch))}, at which module(**batch) raised TypeError: {error}; "
                "expected the arguments of forward and labels. HINT: give a logits_fn that returns "
                "(logits, targets) for this batch"
            ) from error
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if isinstance(logits, Tensor):
            return logits, targets
        raise ValueError(
            f"output of type {type(output).__name__}; expected a tensor or an object with logits. HINT: give a "
            "logits_fn that returns (logits, targets) for this batch"
        )
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        raise ValueError(
            f"batch of type {type(batch).__name__}; expected (inputs, targets). HINT: give a logits_fn that returns "
            "(logits, targets) for this batch"
        )
    return module(batch[0].to(device)), batch[1] if len(batch) > 1 else None


def _own(batches: Iterator[Any]) -> Iterator[Any]:
    """This process's batches: every n-th one."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("distributed=True without a process group; expected one. HINT: leave it out in one process")
    return islice(batches, dist.get_rank(), None, dist.get_world_size())


def _reduced(sums: Mapping[str, Tensor], count: int) -> int:
    """Sums of all processes, in place; returns their count."""
    import torch.distributed as dist

    device = next(iter(sums.values())).device
    total = torch.tensor(count, device=device)
    dist.all_reduce(total)
    for value in sums.values():
        dist.all_reduce(value)
    return int(total)


def subset(loader: Iterable[Any], n_samples: int | None, seed: int) -> Iterator[Any]:
    """The batches, reduced to ``n_samples`` samples; the choice depends on positions only, not on the batch size.

    What is left of several batches is put together to the size of one, where that is sure to change nothing.

    Raises:
        ValueError: if ``n_samples`` is below 1.
    """
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples={n_samples!r}; expected an integer >= 1 or None. HINT: None takes all samples")
    if n_samples is None:
        yield from loader
        return
    from lightning_cl.functional.batches import batch_size, concatenate, select

    try:
        total = len(loader.dataset)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        total = n_samples
    chosen = torch.randperm(total, generator=generator(seed, "fisher", "subset"))[:n_samples].sort().values
    start, size, gathered = 0, 0, None
    for batch in loader:
        stop = start + batch_size(batch)
        size = max(size, stop - start)
        inside = chosen[(chosen >= start) & (chosen < stop)] - start
        if len(inside):
            part = batch if len(inside) == stop - start else select(batch, inside)
            if gathered is None:
                gathered = part
            elif _is_alike(gathered, part) and batch_size(gathered) + len(inside) <= size:
                gathered = concatenate(gathered, part)
            else:
                yield gathered
                gathered = part
        start = stop
        if start > int(chosen[-1]):
            break
    if gathered is not None:
        yield gathered


def _is_alike(a: Any, b: Any) -> bool:
    """Whether both are tuples, lists or dicts of tensors of equal dtypes and trailing shapes, and of nothing else.

    Nothing needs padding then, and nothing beside the samples could differ.
    """
    if type(a) is not type(b) or type(a) not in (tuple, list, dict) or len(a) != len(b):
        return False
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return False
        a, b = list(a.values()), [b[key] for key in a]
    return all(
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and x.dim() > 0
        and y.dim() > 0
        and x.dtype == y.dtype
        and x.device == y.device
        and x.shape[1:] == y.shape[1:]
        for x, y in zip(a, b, strict=True)
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode by the flags alone: an overridden ``train`` may do more, and one flag per submodule is put back."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, flag in flags:
            part.training = flag
