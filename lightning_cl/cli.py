"""``lightning-cl`` and ``python -m lightning_cl``. Nothing heavy is imported before it is needed."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from lightning_cl import signals, slurm
from lightning_cl._conf import conf_dir
from lightning_cl._ranks import rank_in_environment
from lightning_cl.errors import Stopped

SUBCOMMANDS = {
    "report": ("lightning_cl.report.command", "gather run folders into one table and one HTML page"),
    "soup": ("lightning_cl.soup_command", "average the models of a sweep into one checkpoint"),
    "interpolate": ("lightning_cl.interpolate_command", "write the model between two checkpoints (WiSE-FT)"),
    "importance": ("lightning_cl.importance_command", "compute, inspect and merge importances of parameters"),
    "forget": ("lightning_cl.forget_command", "delete samples from the memory that a run folder holds"),
    "schedule": ("lightning_cl.schedule_command", "print a freezing schedule for a model, to be edited"),
    "select": (
        "lightning_cl.select_command",
        "rank pretrained models for a stream by their features",
    ),
}
HELP = """lightning-cl: fine-tuning and continual learning for PyTorch Lightning

usage: lightning-cl [group=option ...] [key=value ...] [-m]      learn a stream of tasks
       lightning-cl SUBCOMMAND ...

five commands worth copying
  lightning-cl                                                     digits in 5 tasks, with replay (no download)
  lightning-cl stream=split_mnist method=er data_dir=DIR           MNIST, from a folder or with download=true
  lightning-cl stream=split_mnist stream.scenario=task_incremental method=ewc callbacks.ewc.lambda_=1e5 data_dir=DIR
  lightning-cl -m method=naive,ewc,er seed=0,1,2                   a sweep; hydra/launcher=joblib runs it in parallel
  lightning-cl report runs                                         compare all runs in a folder

subcommands
{subcommands}

groups (choose one with group=option; method takes several: method=[ewc,er])
{groups}

Every value can be overridden: --cfg job shows all, --info how they were composed, --hydra-help Hydra's own flags.
The same command goes on where it was stopped; resume=never starts anew. Results: runs/<stream>/<method>/.../
"""
_errors: list[Exception] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 for a sweep with failed jobs, or a run that was stopped by a time limit or callback; 2 for bad input, after
        one line about it on standard error; 130, 138, 140 or 143 for a run that was stopped by SIGINT, SIGUSR1, SIGUSR2
        or SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with signals.listening():  # before anything heavy is imported
        return _main(arguments)


def _main(arguments: list[str]) -> int:
    if arguments and arguments[0] in SUBCOMMANDS:
        command = import_module(SUBCOMMANDS[arguments[0]][0]).main
        return _reported(lambda: command(arguments[1:]), [text for text in arguments[1:] if "=" in text])
    if "-h" in arguments or "--help" in arguments or arguments == ["help"]:
        print(help_text(), end="")
        return 0
    return _reported(lambda: _hydra(arguments), arguments)


def help_text() -> str:
    """Groups are read from the config folder, without Hydra."""
    root = conf_dir()
    rows = []
    for group in sorted(p for p in root.iterdir() if p.is_dir() and p.name not in ("hydra", "__pycache__")):
        options = sorted(f.relative_to(group).with_suffix("").as_posix() for f in group.rglob("*.yaml"))
        rows.append(f"  {group.name + ':':<18}{', '.join(options)}")
    subcommands = [f"  {name:<12}{text}" for name, (_, text) in SUBCOMMANDS.items()]
    return HELP.format(subcommands="\n".join(subcommands), groups="\n".join(rows))


def job(cfg: Any) -> float | None:
    """What Hydra calls for a run, and for each job of a sweep; a sweeper that searches is told what it returns."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from lightning_cl import app, sweep

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if signals.active() and signals.received():
            sweep.stopped_jobs.append(signals.received())
            return None
        return sweep.recorded(app.run_job, cfg)
    try:
        app.run_job(cfg)
    except Exception as error:  # Hydra would print a line of its own before it hands the error over
        _errors.append(error)
        sweep.put_back()
    return None


def _hydra(arguments: list[str]) -> int:
    import hydra

    from lightning_cl import sweep
    from lightning_cl._conf import register_resolvers
    from lightning_cl._overrides import with_plus

    flags = _flags(arguments)
    register_resolvers()
    if flags.config_path is None:
        typed = flags.overrides
        plus = dict(zip(typed, with_plus(typed, flags.config_name or "config", flags.config_dir), strict=True))
        arguments = [plus.get(text, text) for text in arguments]
    _errors.clear()
    sweep.failed_jobs.clear()
    sweep.stopped_jobs.clear()
    before, sys.argv = sys.argv, [sys.argv[0] or "lightning-cl", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    finally:
        sys.argv = before
    if _errors:
        raise _errors.pop()
    if sweep.stopped_jobs:
        raise signals.StopRequested(sweep.stopped_jobs[0])
    return 1 if sweep.failed_jobs else 0


def _flags(arguments: list[str]) -> Any:
    """Hydra's parser prints its usage and exits; one line is enough."""
    from hydra._internal.utils import get_args_parser

    from lightning_cl.errors import InputError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return get_args_parser().parse_args(arguments)
    except SystemExit as end:
        if end.code:
            given = said.getvalue().strip().rpartition("error: ")[2]
            raise InputError(given, "overrides and Hydra's own flags", "lightning-cl --hydra-help lists them") from None
        raise


def _reported(command: Callable[[], int], overrides: Sequence[str]) -> int:
    """Turn what a person did wrong into one line and exit code 2; bugs keep their traceback."""
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands errors over instead of printing them
    try:
        return command()
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning turns Ctrl-C and SIGTERM into SystemExit, the latter with code 0
        terminated = type(end).__name__ == "SIGTERMException"
        if not (terminated or isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt)):
            return end.code if isinstance(end.code, int) else 1 if end.code else 0
        print(f"{'terminated' if terminated else 'interrupted'}; the same command goes on", file=sys.stderr)
        return 143 if terminated else 130
    except Exception as error:
        from lightning_cl._messages import one_line

        if isinstance(error, Stopped):
            number = getattr(error, "number", 0)
            if rank_in_environment() == 0:
                print(f"{error}{', when Slurm runs it again' if number and slurm.requeue() else ''}", file=sys.stderr)
            return 128 + number if number else 1
        line = one_line(error, overrides)
        if line is None or wanted == "1":
            raise
        if rank_in_environment() == 0:
            print(f"error: {line}", file=sys.stderr)
        return 2
    finally:
        if wanted is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = wanted
