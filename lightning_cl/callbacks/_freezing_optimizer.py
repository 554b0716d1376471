"""Parameters that a schedule will thaw and that no optimizer holds become parameter groups of it."""

from typing import Any

from torch import nn

from lightning_cl.callbacks._freezing_phases import Phase
from lightning_cl.callbacks._freezing_plan import Part
from lightning_cl.callbacks._freezing_rates import Law, extend, new_group, refuse_unknown
from lightning_cl.errors import InputError


def add_missing_groups(optimizers: list[Any], schedulers: list[Any], parts: list[Part]) -> None:
    """Add one group for each part with parameters that no optimizer holds; held ones are left as they are.

    It is done at the start of the fit, when nothing has been stepped: then a group's learning rate follows every
    scheduler from its beginning, and all checkpoints of a fit have the same groups.

    Raises:
        InputError: If a part has a learning rate of its own but is held, or if its parameters cannot be added.
    """
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for part in parts:
        missing = {name: p for name, p in part.parameters.items() if id(p) not in held}
        if part.phase.lr is not None and len(missing) < len(part.parameters):
            raise InputError(
                f"lr={part.phase.lr:g} for {part.phase.what}, of which the optimizer holds "
                f"{len(part.parameters) - len(missing)} of {len(part.parameters)} parameters",
                "no lr for parameters that configure_optimizers has given one",
                "set it there: return an optimizer over lightning_cl.finetuning.parameter_groups(...)",
            )
        if missing:
            why = f"{len(missing)} parameters of {part.phase.what} that no optimizer holds"
            _add(_the_one(optimizers, why), schedulers, missing, part.phase, why)
            held |= {id(p) for p in missing.values()}


def refuse_other_groups(saved: list[int], optimizers: list[Any], name: str) -> None:
    """Refuse a checkpoint whose optimizers have other numbers of groups, before torch does.

    Raises:
        InputError: With both numbers.
    """
    now = [len(optimizer.param_groups) for optimizer in optimizers]
    if saved and saved != now:
        raise InputError(
            f"a checkpoint of optimizers with {saved} parameter groups",
            f"{now}, with those of {name}",
            "resume with the schedule that wrote it, or load its weights only and begin a new fit",
        )


def learning_rates(optimizers: list[Any], parameters: dict[str, nn.Parameter]) -> list[float]:
    """The learning rates with which parameters begin (or their peaks), each once, in the optimizers' order."""
    ids = {id(p) for p in parameters.values()}
    rates = [
        float(group.get("max_lr", group.get("initial_lr", group["lr"])))
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(id(p) in ids for p in group["params"])
    ]
    return list(dict.fromkeys(rates))


def _the_one(optimizers: list[Any], why: str) -> Any:
    if len(optimizers) != 1:
        raise InputError(f"{len(optimizers)} optimizers, and {why}", "one optimizer, or one that holds them",
                         "give them to an optimizer in configure_optimizers")  # fmt: skip
    if type(optimizers[0]).__name__ == "LBFGS":
        raise InputError(f"LBFGS, which takes no second parameter group, and {why}", "an optimizer that holds them",
                         "give it all parameters in configure_optimizers")  # fmt: skip
    return optimizers[0]


def _add(optimizer: Any, schedulers: list[Any], missing: dict[str, Any], phase: Phase, why: str) -> None:
    mine = [s for s in schedulers if getattr(s, "optimizer", optimizer) is optimizer]
    refuse_unknown(optimizer, mine, why)
    law = Law(optimizer, mine, phase.lr)
    named = "param_names" in optimizer.param_groups[0]
    parameters = list(missing.items()) if named else list(missing.values())
    optimizer.add_param_group(new_group(optimizer, parameters, law, phase.what))
    extend(mine, law)
