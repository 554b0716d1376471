"""One config at a time through what the command line does with it, without its start and its report."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_cl import app
from lightning_cl._conf import conf_dir, register_resolvers
from lightning_cl._messages import one_line

# short whatever the value is: a million epochs end after three steps
SHORT = {
    "model.backbone.hidden": [8],
    "limit_tasks": 1,
    "trainer.max_epochs": 1,
    "trainer.max_steps": 3,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
    "accelerator": "cpu",
    "resume": "never",
    "progress_bar": False,
    "reference_methods": [],
}
# methods that stand beside another
BESIDE = {"balanced_fine_tuning": "[er,balanced_fine_tuning]", "wa": "[er,wa]"}
CPU_SECONDS = 20
GIBIBYTES = 6


class TooLong(BaseException):
    """No test waits longer; no ``except Exception`` catches it."""


@dataclass
class Outcome:
    """What a person would have seen."""

    kind: str  # finished | refused | traceback | too long
    text: str = ""


@cache
def _composed(method: str) -> tuple[str, DictConfig]:
    """The config of a method as YAML, with the values that keep a run short; and what Hydra is told of it."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"method={BESIDE.get(method, method)}"], return_hydra_config=True)
    GlobalHydra.instance().clear()
    whole = config.copy()
    with open_dict(config):
        del config["hydra"]
    for key, value in SHORT.items():
        OmegaConf.update(config, key, value, force_add=True)
    if config.budget is not None:  # a share of what is nearly nothing
        config.budget = 1.0
    for section in config.callbacks.values():  # passes over data as short as the rest
        if section.get("_target_") == "lightning_cl.GDumb":
            section.max_epochs = 1
    return OmegaConf.to_yaml(config), whole


def config_of(method: str) -> DictConfig:
    """A config of one's own of a method."""
    config = OmegaConf.create(_composed(method)[0])
    assert isinstance(config, DictConfig)
    return config


def attempt(config: DictConfig, overrides: list[str], method: str = "er") -> Outcome:
    """Run a config as the command line does, in a folder of its own, and say how that ended."""
    folder, before = Path(tempfile.mkdtemp(prefix="fuzz-")), Path.cwd()
    os.chdir(folder)  # a path among the values leads to nowhere else
    HydraConfig.instance().set_config(_composed(method)[1])  # other tests leave their own
    OmegaConf.set_readonly(HydraConfig.get(), False)
    HydraConfig.get().overrides.task = overrides
    try:
        with _limits(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            results = app.run_config(config, folder / "run", method, show=False)
            json.dumps(results)
        return Outcome("finished")
    except TooLong:
        return Outcome("too long", traceback.format_exc())
    except Exception as error:
        line = one_line(error, overrides)
        return Outcome("traceback", traceback.format_exc()) if line is None else Outcome("refused", line)
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """An end to time and memory, and no other processes: a million of them are what a wrong value may ask for."""

    def too_long(*_: Any) -> None:
        raise TooLong

    def no_process(*_: Any, **__: Any) -> Any:
        raise AssertionError("a process was started")

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    before = signal.signal(signal.SIGVTALRM, too_long)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    popen, subprocess.Popen = subprocess.Popen, no_process  # type: ignore[assignment,misc]
    if Path("/proc/self/statm").exists():
        resource.setrlimit(resource.RLIMIT_AS, (pages() + GIBIBYTES * 2**30, memory[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        subprocess.Popen = popen  # type: ignore[misc]
