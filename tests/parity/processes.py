"""All methods, one after the other, in one process or in two that a script has started."""

import copy
from collections.abc import Iterator
from functools import partial, reduce
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, DistributedSampler

from lightning_cl import EWC, LwF, Replay, run_sequence
from lightning_cl._compat import seeded
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import concatenate, select
from lightning_cl.sequence.state import Stage
from lightning_cl.streams import Classification, Stream, class_incremental, task_incremental
from tests.finetuning.examples import blobs
from tests.parity.conditions import CONDITIONS, STRUCTURES
from tests.parity.methods import FOREIGN, METHODS, OURS, RECIPES, SEQUENCE, refusal
from tests.parity.projects import PROJECTS, QUIET, OneTask, ours, tasks

#: heads of which a task uses a part
HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    f"{name}, head={head}": (make, {"head": head})
    for head in ("multi", "separate", "fixed")
    for name, make in {
        "naive": lambda: [],
        "ewc": lambda: [EWC(5.0)],
        "er": lambda: [Replay(12)],
        "lwf": lambda: [LwF()],
    }.items()
}
#: on a Trainer of one's own, with batches of other kinds and Lightning's own sampler
KINDS: dict[str, tuple[str, str]] = {
    f"{method}, {structure}": (method, structure)
    for structure in STRUCTURES[1:]
    for method in METHODS
    if method not in SEQUENCE and refusal(method, "plain", structure) is None
}
BATCH = 8
NAMES = [*METHODS, *HEADS, *KINDS]
#: what a test learns in one start of two processes
PARTS: dict[str, list[str]] = {
    "stream": [*METHODS, *HEADS],
    **{kind: [name for name, (_, structure) in KINDS.items() if structure == kind] for kind in STRUCTURES[1:]},
}
PENALTIES = ["ewc", "ewc, proximal", "online_ewc", "kfac_ewc", "l2", "l2sp", "mas", "rwalk", "si"]
SCHEDULES = ["auto_freeze", *RECIPES, "freezing"]
#: importances and teachers too are those of one process with the same global batch
SAME_STATE = [
    *(*PENALTIES, "lwf", "gdumb", "uniform"),
    *(name for name in HEADS if not name.startswith("er,")),
    *(name for name, (method, _) in KINDS.items() if method in (*PENALTIES, "lwf", *SCHEDULES)),
]
#: and so are the weights; of the others, which samples are stored depends on the sizes of the batches
SAME_WEIGHTS = [
    *(*SAME_STATE, "er", "er, separate", "a_gem", "gem", "dgr", "shrink_and_perturb", "lora", "ia3", "ema", "wise_ft"),
    *SCHEDULES,
    *(name for name, (method, _) in KINDS.items() if method in ("shrink_and_perturb", "lora", "ia3", "ema", "wise_ft")),
]
REFUSED: dict[str, str] = {}


def stream(builder: Any = class_incremental) -> Stream:
    """Two tasks of 60 training samples and, so that a padded one would count, 63 for testing."""
    return builder(Classification(blobs().train, blobs(per_class=21).test, blobs().class_names), 2)


class Look(Callback):
    """Behind the consolidation of each task, in every process: weights and what the callbacks hold."""

    def __init__(self, callbacks: list[Any]) -> None:
        self.callbacks, self.ends = callbacks, list[dict[str, Any]]()

    def stages(self) -> list[Stage]:
        return [Stage("look", self._look, after="consolidate")]

    def _look(self, state: Any, task: Any) -> None:
        held = {str(i): callback.state_dict() for i, callback in enumerate(self.callbacks)}
        memories = [m for m in (getattr(callback, "memory", None) for callback in self.callbacks) if m is not None]
        stored = [memory.at(slice(0, len(memory))) for memory in memories if len(memory)]
        self.ends.append(copy.deepcopy({"weights": dict(state.module.state_dict()), "state": held, "stored": stored}))


def learn_kind(name: str, processes: int) -> dict[str, Any]:
    """Two tasks of a kind of batch, in float64."""
    method, structure = KINDS[name]
    several = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    fit, ends = (_fit_foreign if method in FOREIGN else _fit_ours), list[dict[str, Any]]()
    with seeded(0):
        for module, callbacks in fit(method, structure, processes, several):
            held = {str(i): callback.state_dict() for i, callback in enumerate(callbacks)}
            ends.append(copy.deepcopy({"weights": dict(module.state_dict()), "state": held}))
    return {"ends": ends}


def _fit_foreign(method: str, structure: str, processes: int, several: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    make, plain = FOREIGN[method]
    module, callback = PROJECTS[structure]().double(), make()
    count_memory_samples([callback], processes)
    for task in range(2):
        batches = PROJECTS[structure].data(task, torch.float64)
        samples = [select(batch, slice(i, i + 1)) for batch in batches for i in range(6)]
        # the order in which the sampler that Lightning puts in deals them out
        alone = {"sampler": DistributedSampler(samples, 1, 0)} if processes == 1 else {}
        collate = partial(reduce, concatenate)
        loader = DataLoader(samples, batch_size=6 // processes, collate_fn=collate, **alone)
        epochs = plain(PROJECTS[structure]()).epochs
        Trainer(**QUIET, **several, max_epochs=epochs, callbacks=[callback]).fit(module, loader)
        yield module, [callback]


def _fit_ours(method: str, structure: str, processes: int, several: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    make, _, options = OURS[method]
    module, callbacks = ours(structure, CONDITIONS["plain"], **options), make()
    for task in tasks():
        data = OneTask(task, structure, batch_size=10 // processes)
        Trainer(**QUIET, **several, max_epochs=2, callbacks=callbacks).fit(module, datamodule=data)
        yield module, callbacks


def count_memory_samples(callbacks: list[Any], processes: int) -> None:
    """Memory samples of a step are counted in each process: twice as many in one."""
    for callback in callbacks:
        if isinstance(getattr(callback, "batch_size", None), int):
            callback.batch_size = 2 * callback.batch_size // processes


def learn(name: str, processes: int) -> dict[str, Any]:
    """What there is at the end of each task, and the accuracies; or the line of a refusal."""
    if name in KINDS:
        return learn_kind(name, processes)
    options: dict[str, Any] = {}
    given: dict[str, Any] = {}
    if name in FOREIGN:
        callbacks = [FOREIGN[name][0]()]
    elif name in HEADS:
        make, options = HEADS[name]
        callbacks = make()
    else:
        make, _, extra = {**OURS, **SEQUENCE}[name]
        callbacks = make()
        options, given = (extra, {}) if name in OURS else ({}, extra)
    count_memory_samples(callbacks, processes)
    if options.get("head") == "fixed":
        options = {**options, "class_names": [f"c{i}" for i in range(6)]}
    by_task = options.get("head") in ("multi", "separate")
    look, several = Look(callbacks), {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    given_stream = stream(task_incremental if by_task else class_incremental)
    try:
        with seeded(0):
            results = run_sequence(
                ours("tuple", CONDITIONS["plain"], **options), given_stream, [*callbacks, look], progress_bar=False,
                batch_size=BATCH // processes, eval_batch_size=8,
                trainer=partial(Trainer, max_epochs=2, **QUIET, **several), **given,
            )  # fmt: skip
    except InputError as error:
        return {"refused": str(error)}
    return {"ends": look.ends, "matrix": torch.tensor([[x or -1.0 for x in row] for row in results["accuracy_matrix"]])}
