"""An importance computed outside any training: a config's model on its stream's training data."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_cl import app
from lightning_cl._conf import conf_dir, register_resolvers
from lightning_cl._overrides import with_plus
from lightning_cl._sections import recorded_config
from lightning_cl._types import refuse_wrong_kinds
from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from lightning_cl.importance_files import ImportanceFile
from lightning_cl.report.finding import read_run
from lightning_cl.report.run import Run
from lightning_cl.sequence.identity import config_hash
from lightning_cl.sequence.store import load_weights
from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.stream import merge_tasks

METHODS = ("fisher", "mas")


@dataclass
class Request:
    """What is to be computed.

    Args:
        overrides: Of the app's config (``stream=...``, ``model=...``, ``data_dir=...``); with ``run`` beside its own.
        task: The task whose training data are taken; all tasks' by default.
        method: ``fisher`` (see :class:`~lightning_cl.EWC`) or ``mas`` (see :class:`~lightning_cl.MAS`).
        labels, n_draws: Of the Fisher.
        n_samples: Use a seeded subset of this many samples; all by default.
        checkpoint: A Lightning checkpoint of the model, or the ``model.ckpt`` of a run folder.
        run: A finished run folder, for its config and, without ``checkpoint``, its weights.
    """

    overrides: Sequence[str] = ()
    task: int | None = None
    method: str = "fisher"
    labels: str = "exact"
    n_draws: int = 1
    n_samples: int | None = None
    checkpoint: Path | None = None
    run: Path | None = None


def compute(request: Request) -> tuple[ImportanceFile, list[str]]:
    """The importance of the model's parameters, its weights as anchor, and notes on what a person should know.

    The data are the task's training data in order, without augmentation; those held out for validation are not used.

    Raises:
        InputError: For a config, a checkpoint, a run folder or a task that does not fit.
    """
    app.quiet()
    overrides = list(request.overrides)
    run = read_run(request.run) if request.run is not None else None
    if run is not None:
        overrides = [*overrides_of(run), *overrides]
    checkpoint = request.checkpoint or (run.folder / "model.ckpt" if run is not None else None)
    with composed(overrides) as cfg:
        if run is not None:
            refuse_foreign_code(OmegaConf.to_container(cfg), run.folder)
        refuse_wrong_kinds(recorded_config(cfg, request.method))
        stream = instantiate(cfg.stream, _convert_="all")
        module = app.build_module(cfg, stream)
        trainer = app.build_trainer(cfg)(logger=False, enable_checkpointing=False)
    if checkpoint is not None:
        hint = "give the overrides that it was trained with (model=..., stream.scenario=...)"
        load_weights(module, _checkpoint(checkpoint), checkpoint, hint)
    tasks = _tasks(stream, request.task, cfg.limit_tasks)
    untrained = _learn_classes(module, stream, tasks, checkpoint is not None)
    notes = [f"rows of the head that nothing has trained: {untrained}; --checkpoint or --run gives trained ones"]
    data = merge_tasks(tasks, id=tasks[-1].id, name="tasks").train if len(tasks) > 1 else tasks[0].train
    module.to(trainer.strategy.root_device)
    callback = _callback(request, cfg.seed)
    callback.consolidate(None, module, TaskLoader(data, cfg.batch_size, num_workers=cfg.num_workers))
    info = {
        "kind": request.method,
        **({"labels": request.labels} if request.method == "fisher" else {}),
        "n_samples": min(len(data), request.n_samples or len(data)),
        "stream": stream.name,
        "scenario": stream.scenario,
        "tasks": [task.name for task in tasks],
        "weights": checkpoint.name if checkpoint is not None else "of the config",
        "seed": cfg.seed,
    }
    return ImportanceFile(callback.importance, callback.anchor, info), notes if untrained else []


@contextmanager
def composed(overrides: list[str]) -> Iterator[DictConfig]:
    """The app's config, as a run would have it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    register_resolvers()
    overrides = with_plus(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        yield cfg


def overrides_of(run: Run) -> list[str]:
    """The command line of a run, if it still gives the config that was run."""
    file = run.folder / ".hydra" / "overrides.yaml"
    hint = f"give its overrides yourself, and --checkpoint {run.folder / 'model.ckpt'}"
    try:
        overrides = [str(text) for text in OmegaConf.load(file)]
    except OSError as error:
        raise InputError(f"no {str(file)!r}", "a run folder of lightning-cl", hint) from error
    if not (run.folder / "model.ckpt").is_file():
        raise InputError(f"no model.ckpt in {str(run.folder)!r}", "a finished run", "let it finish first")
    with composed(overrides) as cfg:
        config = recorded_config(cfg, run.method)
    if config_hash(config) != run.results.get("config_hash"):
        raise InputError(
            f"the overrides of {str(run.folder)!r} ({' '.join(overrides)}) give another config now",
            "the config that was run",
            hint,
        )
    return overrides


def refuse_foreign_code(config: Any, folder: Path) -> None:
    """A run folder may come from anywhere, and a ``_target_`` is code: only those of our own configs are built."""
    texts = [file.read_text(encoding="utf-8") for file in conf_dir().rglob("*.yaml")]
    known = {target for text in texts for target in re.findall(r"_target_: (\S+)", text)}
    for target in _targets(config):
        if target not in known:
            raise InputError(
                f"{target!r} in the config of {str(folder)!r}",
                "classes that our own configs name, because config text is code",
                f"give its overrides yourself, and --checkpoint {folder / 'model.ckpt'}",
            )


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        yield from [str(config["_target_"])] if "_target_" in config else []
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else []:
        yield from _targets(value)


def _checkpoint(path: Path) -> dict[str, Any]:
    expected, hint = "a Lightning checkpoint with a state_dict", "give model.ckpt of a run folder, for example"
    try:
        content = load_state(path)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {str(path)!r}", expected, hint) from error
    except Exception as error:
        raise InputError(f"{str(path)!r} cannot be read ({type(error).__name__})", expected, hint) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{str(path)!r} without a state_dict", expected, hint)
    return content


def _tasks(stream: Any, task: int | None, limit: int | None) -> list[Any]:
    tasks = list(stream)[:limit]
    if task is not None and not 0 <= task < len(tasks):
        raise InputError(f"--task {task}", f"0 to {len(tasks) - 1}", "leave it out for all tasks")
    return tasks if task is None else [tasks[task]]


def _learn_classes(module: Any, stream: Any, tasks: list[Any], trained: bool) -> str:
    """Tell a head of ours the tasks' classes; returns those whose rows nothing has trained."""
    if not hasattr(module, "learn_classes"):
        return ""
    names = stream.class_names[: 1 + max(i for task in tasks for i in task.class_indices)]
    known = list(module.class_names)
    for ours, theirs in zip(known, names, strict=False):
        if ours != theirs:
            raise InputError(
                f"class {theirs!r} of the stream where the model has {ours!r}",
                f"labels in the order of the head's rows, {known}",
                "give the stream's classes in that order",
            )
    new = names[len(known) :]
    if new or not module.tasks:
        module.learn_classes(names, [task.class_indices for task in stream[: tasks[-1].id + 1]])
    return ", ".join(new if trained else names)


def _callback(request: Request, seed: int) -> Any:
    if request.method == "mas":
        from lightning_cl import MAS

        return MAS(1.0, n_samples=request.n_samples, seed=seed)
    from lightning_cl import EWC

    keywords: Any = {"labels": request.labels, "n_draws": request.n_draws}
    return EWC(1.0, n_samples=request.n_samples, seed=seed, **keywords)
