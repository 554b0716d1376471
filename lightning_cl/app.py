"""From a composed config to a finished run folder."""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_cl._conf import run_method
from lightning_cl._messages import constructor_error
from lightning_cl._sections import check_config, recorded_config, refuse_unknown_keys
from lightning_cl.errors import InputError
from lightning_cl.files import as_json, write_json
from lightning_cl.pruning import Pruning, pruner

log = logging.getLogger(__name__)
# of both of its names: a project may import either
LOGGERS = (
    *("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities"),
    *("pytorch_lightning", "lightning_fabric"),
)
SETTINGS = (
    *("training_data", "reinitialize", "optimizer_state", "batch_size", "eval_batch_size", "num_workers", "drop_last"),
    "updates_per_batch",
    *("seed", "metric", "higher_is_better", "resume", "checkpoint_every_n_steps", "select", "monitor", "monitor_mode"),
    *("evaluate_future", "evaluate_random_init", "evaluate_every_n_steps", "limit_tasks", "budget"),
    *("trained_tasks", "early_stopping", "tune"),
)


def run_job(cfg: DictConfig) -> dict[str, Any]:
    """Run the config's method, then its reference methods, and write the report."""
    from hydra.types import RunMode

    from lightning_cl import report
    from lightning_cl._compat import process_rank

    quiet()
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    single = hydra.mode != RunMode.MULTIRUN
    if not single:
        _refuse_processes(build_trainer(cfg))
    name = run_method(hydra)
    first = process_rank() == 0
    before = (run_dir / "results.json").read_text() if (run_dir / "results.json").is_file() else None
    give_up = None if single else pruner(_pruning(cfg), Path(hydra.sweep.dir), run_dir)
    source = trained_source(cfg, run_dir)
    results = run_config(cfg, run_dir, name, show=single and first, give_up=give_up, source=source)
    results["reference_methods"] = {}
    for reference in [m for m in cfg.reference_methods or [] if m != name]:
        folder = run_dir / "references" / reference
        # a sweep trains none, but what a single run of the same job has trained stays in its results
        if single or (folder / "results.json").is_file():
            results["reference_methods"][reference] = run_config(
                _with_method(reference), folder, reference, show=False, source=source
            )
    if not first:
        return results
    page = run_dir / "report.html"
    if before != as_json(results):
        page.unlink(missing_ok=True)
    write_json(run_dir / "results.json", results)
    # drawing takes longer than everything else in a run that had finished before
    if not page.is_file() or not page.stat().st_size:
        report.write_report(run_dir)
    if single:
        report.matrix_table(results, report=page)
    return results


def trained_source(cfg: DictConfig, run_dir: Path) -> Path | None:
    """The model that the config's ``source`` trains, in a folder of its own; it is trained once."""
    if not cfg.source:
        return None
    overrides: Any = OmegaConf.to_container(cfg.source) if OmegaConf.is_config(cfg.source) else cfg.source
    if not isinstance(overrides, list) or not all(isinstance(text, str) for text in overrides):
        raise InputError(f"source={overrides!r}", "a list of overrides", "\"source=['stream.dataset.path=FOLDER']\"")
    run_config(_with_method("naive", "source=null", *overrides), run_dir / "source", "naive", show=False)
    return run_dir / "source" / "model.ckpt"


def run_config(
    cfg: DictConfig,
    run_dir: Path,
    name: str,
    *,
    show: bool,
    give_up: Callable[[dict[str, Any]], str | None] | None = None,
    source: Path | None = None,
) -> dict[str, Any]:
    """Build stream, module and callbacks of one config, and learn the stream in ``run_dir``.

    Args:
        cfg: The config.
        run_dir: Where results are.
        name: The method's, in the results.
        show: Whether to print tables and a bar.
        give_up: Of the results so far: why the run is not worth going on with, or None.
        source: A checkpoint whose weights the module starts from, without its head, unless ``from_source`` is false.
    """
    from lightning_cl import report
    from lightning_cl.sequence import run_sequence

    quiet()
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    refuse_unknown_keys(cfg, HydraConfig.get() if HydraConfig.initialized() else None)
    check_config(config, SETTINGS)
    _pruning(cfg)  # looked at in every run, so that a mistake is not first seen in a sweep
    trainer = build_trainer(cfg)
    stream = instantiate(cfg.stream, _convert_="all")
    module = build_module(cfg, stream)
    if source is not None and cfg.from_source:
        from lightning_cl.finetuning import load_weights

        load_weights(module, source, head="new")
    # an experiment may tune methods that this run does not use; those entries have no _target_
    used = {key: section for key, section in (cfg.callbacks or {}).items() if section and "_target_" in section}
    callbacks = {key: instantiate(c, **memory_files(c, run_dir), _convert_="all") for key, c in used.items()}
    return run_sequence(
        module,
        stream,
        list(callbacks.values()),
        run_dir=run_dir,
        method=name,
        trainer=trainer,
        loggers=[_logger(key, logger) for key, logger in (cfg.get("loggers") or {}).items()],
        config=recorded_config(cfg, name),
        progress_bar=_bar(cfg.progress_bar, show),
        on_task_end=report.task_table if show else None,
        give_up=give_up,
        **{key: config[key] for key in SETTINGS},
    )


def memory_files(section: Mapping[str, Any], run_dir: Path) -> dict[str, str]:
    """The files of a callback's memory that its section names: inside the run folder, where they are relative."""
    names = ["deletion_log", *(["path"] if section.get("storage") == "disk" else [])]
    given = {name: section.get(name) for name in names}
    # one without a name of its own is the memory's to refuse, as it was typed
    return {key: str(run_dir / path) for key, path in given.items() if isinstance(path, str) and Path(path).name}


def _pruning(cfg: DictConfig) -> Pruning:
    section: Any = OmegaConf.to_container(cfg, resolve=True)
    given = section.get("prune")
    known = [field.name for field in fields(Pruning)]
    if given is not None and not (isinstance(given, dict) and set(given) <= set(known)):
        raise InputError(f"prune={given!r}", f"a mapping of {', '.join(known)}, or null", "set prune.after=1")
    return Pruning(**(given or {}))


def _refuse_processes(trainer: Callable[..., Any]) -> None:
    """In a sweep: the processes that a Trainer starts run the command line again, and would start the sweep anew."""
    from lightning_cl._compat import launched_by_others

    n = trainer(logger=False, enable_checkpointing=False).world_size
    if n > 1 and not launched_by_others():
        raise InputError(
            f"a sweep (-m) of jobs with {n} processes each",
            "jobs of one process, or a launcher that starts the processes",
            "set trainer.devices=1, or hydra/launcher=submitit_slurm with its tasks_per_node",
        )


def build_trainer(cfg: DictConfig) -> Callable[..., Any]:
    """``**keywords -> Trainer`` of the config, which has been seen to build one."""
    trainer = instantiate(cfg.trainer, _convert_="all")
    section: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    _built("trainer", section, lambda: trainer(logger=False, enable_checkpointing=False))
    return trainer


def _built(key: str, section: dict[str, Any], build: Callable[[], Any]) -> Any:
    """What ``build`` gives; a section of the config whose constructor refuses its arguments is bad input."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        return build()
    except InputError:
        raise
    except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
        overrides = HydraConfig.get().overrides.task
        raise constructor_error(key, section.get("_target_", key), error, overrides) from error


def _logger(key: str, section: DictConfig) -> Callable[..., Any]:
    """``save_dir -> logger``, the same one at every call, so that all tasks write into one."""
    make = instantiate(section, _convert_="all")
    made: list[Any] = []

    def logger(**keywords: Any) -> Any:
        if not made:
            made.append(_built(f"loggers.{key}", dict(section), lambda: make(**keywords)))
        return made[0]

    return logger


def build_module(cfg: DictConfig, stream: Any) -> Any:
    """The config's LightningModule, from seeded weights; ours is told the stream's shape and a fixed head's classes."""
    from lightning_cl import _compat
    from lightning_cl.functional.seeding import derive_seed

    extra: dict[str, Any] = {}
    if cfg.model.get("_target_") == "lightning_cl.FineTuningModule":
        extra = {"input_shape": stream.input_shape, "metric_name": cfg.metric}
        if cfg.model.get("head") == "fixed":
            extra["class_names"] = stream.class_names
    with _compat.seeded(derive_seed(cfg.seed, "model")):
        try:
            module = instantiate(cfg.model, **extra, _convert_="all")
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"model {error}", "a model that can be built here", "give weights as a local path, or null"
            ) from error
    _check_tokens(stream, module)
    if extra:  # a module of ours builds its optimizer from the config: better now than in the first fit
        _built("optimizer", dict(cfg.optimizer), module.configure_optimizers)
    return module


def _check_tokens(stream: Any, module: Any) -> None:
    """See that the model takes texts, and knows their tokens, where the stream is one of texts."""
    backbone, tokenizer = getattr(module, "backbone", None), getattr(stream, "tokenizer", None)
    if tokenizer is None or backbone is None or not hasattr(backbone, "spec"):
        return
    known = getattr(backbone, "vocab_size", None)
    if known is None:
        raise InputError(
            f"model of kind {backbone.spec['name']!r} for texts",
            "a text encoder",
            "use model=hf_text model.backbone.name_or_path=FOLDER, or model=hf_text_small",
        )
    if tokenizer.vocab_size > known:
        raise InputError(
            f"{tokenizer.vocab_size} tokens for a model that knows {known}",
            "texts in the model's own tokens",
            "leave stream.dataset.tokenizer out, or give both the same name",
        )


def _bar(choice: Any, show: bool) -> bool:
    """``auto``: a bar where somebody watches, none in log files and sweeps."""
    return bool(choice) if choice != "auto" else show and sys.stderr.isatty()


def _with_method(method: str, *more: str) -> DictConfig:
    """This run's config with another method, and without settings for callbacks it does not have; then ``more``."""
    from hydra import compose

    overrides = [
        text
        for text in HydraConfig.get().overrides.task
        if not text.lstrip("+~").startswith(("method=", "callbacks", "reference_methods=", "training_data="))
    ]
    whole = [f"method=[{method}]", "reference_methods=[]", "budget=null", "trained_tasks=null"]
    return compose(HydraConfig.get().job.config_name, overrides=[*overrides, *whole, *more])


def quiet() -> None:
    """Lightning's notices go to the run's log only; warnings about choices that are ours are muted."""
    import lightning.pytorch  # noqa: F401 - it installs handlers of its own

    for name in LOGGERS:
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    for text in (
        ".*does not have many workers.*",
        ".*`srun` command is available.*",
        ".*smaller than the logging interval.*",
        ".*GPU available.*",
    ):
        warnings.filterwarnings("ignore", text)
    for text in (".*in eval mode at the start of training.*", ".*Total length of .* across ranks is zero.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(lightning|torch)\..*")
