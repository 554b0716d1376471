"""What a sweep remembers of its jobs, the summary at its end, and what a refused command leaves. Nothing heavy."""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from lightning_cl import signals, slurm
from lightning_cl._conf import register_resolvers
from lightning_cl.errors import FolderInUse
from lightning_cl.pruning import objective

log = logging.getLogger(__name__)
RECORDS = "LIGHTNING_CL_SWEEP_RECORDS"
LAUNCHER = "LIGHTNING_CL_SWEEP_LAUNCHER"
LOOK_EVERY = 0.5  # seconds
WAIT_FOR_LOCK = 60.0
failed_jobs: list[str] = []
kept: dict[Path, bytes] = {}  # of a single run's folder, from before Hydra writes there
stopped_jobs: list[int] = []  # the signals: one job was stopped, and those behind it were not begun

register_resolvers()  # a launcher's worker process imports this module before it composes a job


class SweepSummary(Callback):
    """Prints a summary when a multirun ends; jobs of it that failed are named.

    Jobs may be other processes on other machines, so each writes its record into a folder in the sweep's own, whose
    name they find in an environment variable that Hydra sets for every job.
    """

    def on_run_start(self, config: Any, **kwargs: Any) -> None:
        """Keep what Hydra wrote of an earlier command into the run's folder."""
        kept.clear()
        folder = Path(config.hydra.run.dir).absolute()
        if config.hydra.output_subdir and (folder / "sequence.json").is_file():
            notes = folder.glob(f"{config.hydra.output_subdir}/*.yaml")
            with contextlib.suppress(OSError):
                kept.update({file: file.read_bytes() for file in [folder / "sequence.json", *notes]})

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Name a folder for the jobs' records."""
        self.name = f".sweep-{uuid.uuid4().hex}"
        config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{RECORDS}={self.name}")
        launcher = f"{socket.gethostname()}-{os.getpid()}"
        config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{LAUNCHER}={launcher}")
        failed_jobs.clear()
        if not str(config.hydra.launcher._target_).endswith("BasicLauncher"):
            signals.let_go()  # the jobs are other processes, and listen themselves

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Read the records and print them."""
        from lightning_cl.report import sweep_summary

        folder = Path(config.hydra.sweep.dir) / self.name
        jobs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
        shutil.rmtree(folder, ignore_errors=True)
        failed_jobs.extend(job["name"] for job in jobs if job["status"] not in ("finished", "pruned"))
        sweep_summary(jobs)


def put_back() -> None:
    """After a command that was refused: what Hydra wrote of it gives way to what it wrote of the run that is there."""
    with contextlib.suppress(OSError):
        for file, content in kept.items():
            # first comes the progress; where that is another, the command has begun
            if file.read_bytes() != content:
                if file.name == "sequence.json":
                    return
                file.write_bytes(content)


def recorded(run: Callable[[Any], dict[str, Any] | None], cfg: Any) -> float | None:
    """Run a job and write down how it went; an error ends this job only.

    Returns:
        The final average, for a sweeper that searches; None if the job failed.
    """
    from hydra.core.hydra_config import HydraConfig

    from lightning_cl._messages import one_line
    from lightning_cl.files import write_json
    from lightning_cl.report.run import is_divergence

    hydra, start = HydraConfig.get(), time.perf_counter()
    value: float | None = None
    record: dict[str, Any] = {
        "name": ", ".join(hydra.overrides.task) or "default",
        "folder": str(hydra.runtime.output_dir),
        "status": "failed",
        "average_accuracy": None,
        "forgetting": None,
        "error": None,
    }
    try:
        with signals.listening():
            _leave_with(hydra.job.env_set.get(LAUNCHER))
            results = _when_free(run, cfg) or {}
        record.update({key: results.get(key) for key in ("status", "average_accuracy", "forgetting", "error")})
        if "accuracy_matrix" in results:
            value = objective(results, Path(hydra.sweep.dir), Path(record["folder"]))
    except signals.StopRequested as error:
        stopped_jobs.append(error.number)
        _leave(error)
        raise
    except Exception as error:
        record["error"] = (
            one_line(error, hydra.overrides.task) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        )
        record["status"] = "diverged" if is_divergence(record["error"]) else "failed"
        log.info("job failed\n%s", traceback.format_exc())
    record["seconds"] = time.perf_counter() - start
    write_json(Path(hydra.sweep.dir) / hydra.job.env_set[RECORDS] / f"{int(hydra.job.num):06d}.json", record)
    return value


def _leave_with(launcher: str | None) -> None:
    """Stop, as at SIGTERM, when the process that launched this one is killed: nobody waits for the result any more."""
    parent = os.getppid()
    if launcher != f"{socket.gethostname()}-{parent}" or not signals.active():
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)
        while signals.active():  # the job saves and ends; then nothing more comes
            time.sleep(LOOK_EVERY)
        os._exit(128 + signal.SIGTERM)

    name = "launcher-watch"  # one for all jobs of this process
    if not any(thread.name == name for thread in threading.enumerate()):
        threading.Thread(target=watch, name=name, daemon=True).start()


def _when_free(run: Callable[[Any], dict[str, Any] | None], cfg: Any) -> dict[str, Any] | None:
    """Run a job; if a job of a launcher that was killed still works in its folder, wait until that has left."""
    end = time.monotonic() + WAIT_FOR_LOCK
    while True:
        try:
            return run(cfg)
        except FolderInUse:
            if time.monotonic() > end or signals.received():
                raise
            time.sleep(1)


def _leave(stop: signals.StopRequested) -> None:
    """In a job of Slurm: ask for another time, and end without a result, which a launcher would take for the last."""
    if not slurm.job_id():
        return
    log.info("%s", stop)
    slurm.requeue()
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(128 + stop.number)
