"""One cell of the matrix: two tasks with the callback in Lightning, and the same in a plain loop."""

import inspect
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_cl import run_sequence
from lightning_cl._compat import seeded
from tests.callbacks.logit_examples import loader
from tests.finetuning.examples import stream
from tests.parity.classifier_loops import Recorded
from tests.parity.conditions import CONDITIONS
from tests.parity.methods import FOREIGN, OURS, SEQUENCE, TOLD
from tests.parity.projects import PROJECTS, QUIET, OneTask, foreign, ours, tasks, trainer

Pair = tuple[Tensor, Tensor]


def run(method: str, condition: str, structure: str = "tuple") -> Pair:
    """Weights by the callback and by the plain loop."""
    with seeded(0):
        if method in FOREIGN:
            return _foreign(method, condition, structure)
        return _ours(method, condition, structure)


def _foreign(method: str, name: str, structure: str) -> Pair:
    condition = CONDITIONS[name]
    dtype = torch.float32 if condition.half is not None else torch.float64
    make, plain = FOREIGN[method]
    takes = inspect.signature(make).parameters
    callback = make(**(TOLD if condition.manual and takes else {}))
    loop = plain(PROJECTS[structure]().to(dtype))
    module = foreign(structure, condition, dtype)
    data = PROJECTS[structure].data
    for task in range(2):
        trainer(condition, callback, max_epochs=loop.epochs).fit(module, loader(data(task, dtype)))
    return flat(module), loop.learn(condition, dtype)


def _ours(method: str, name: str, structure: str) -> Pair:
    condition, recorded = CONDITIONS[name], Recorded()
    make, plain, options = {**OURS, **SEQUENCE}[method]
    callbacks = make()
    given = {} if method in SEQUENCE else options
    module: Any = ours(structure, condition, **given)
    if method in SEQUENCE:
        results: dict[str, Any] = {}

        class Keep(Recorded):
            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                results["module"] = pl_module

        recorded = Keep()
        run_sequence(
            module, stream(), [*callbacks, recorded], limit_tasks=2, batch_size=10, progress_bar=False,
            trainer=partial(Trainer, max_epochs=2, **{**QUIET, **condition.options()}), **options,
        )  # fmt: skip
        module = results["module"]
    else:
        for task in tasks():
            fitted = trainer(condition, *callbacks, recorded, max_epochs=2)
            fitted.fit(module, datamodule=OneTask(task, structure))
    loop = plain(ours(structure, CONDITIONS["plain"], **given))
    expected = loop.learn(condition, recorded.fits)
    for key, value in loop.rule(callbacks[0]).items():
        torch.testing.assert_close(getattr(module.rule, key), value, rtol=0, atol=100 * condition.tolerance)
    return flat(module), expected


def naive(method: str, structure: str) -> Tensor:
    """Weights without the method."""
    condition = CONDITIONS["plain"]
    if method in FOREIGN:
        module, epochs = foreign(structure, condition, torch.float64), FOREIGN[method][1](PROJECTS[structure]()).epochs
        for task in range(2):
            data = loader(PROJECTS[structure].data(task, torch.float64))
            trainer(condition, max_epochs=epochs).fit(module, data)
        return flat(module)
    module = ours(structure, condition, **(OURS[method][2] if method in OURS else {}))
    for task in tasks():
        trainer(condition, max_epochs=2).fit(module, datamodule=OneTask(task, structure))
    return flat(module)


def flat(module: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])
