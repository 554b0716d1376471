"""What a sweep remembers of its jobs, and the summary at its end. Imports nothing heavy."""

import json
import logging
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

log = logging.getLogger(__name__)
RECORDS = "LIGHTNING_CL_SWEEP_RECORDS"  # jobs may be other processes, so they find the folder in the environment
failed_jobs: list[str] = []


class SweepSummary(Callback):
    """Prints a summary when a multirun ends; jobs of it that failed are named."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Make a folder for the jobs' records."""
        os.environ[RECORDS] = tempfile.mkdtemp(prefix="lightning-cl-sweep-")
        failed_jobs.clear()

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Read the records and print them."""
        from lightning_cl.report import sweep_summary

        folder = Path(os.environ.pop(RECORDS))
        jobs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
        shutil.rmtree(folder, ignore_errors=True)
        failed_jobs.extend(job["name"] for job in jobs if job["status"] != "finished")
        sweep_summary(jobs)


def recorded(run: Callable[[Any], dict[str, Any] | None], cfg: Any) -> None:
    """Run a job and write down how it went; an error ends this job only."""
    from hydra.core.hydra_config import HydraConfig

    from lightning_cl.cli import one_line

    hydra, start = HydraConfig.get(), time.perf_counter()
    record: dict[str, Any] = {
        "name": ", ".join(hydra.overrides.task) or "default",
        "folder": str(hydra.runtime.output_dir),
        "status": "failed",
        "average_accuracy": None,
        "forgetting": None,
        "error": None,
    }
    try:
        results = run(cfg) or {}
        record.update({key: results.get(key) for key in ("status", "average_accuracy", "forgetting")})
    except Exception as error:
        record["error"] = one_line(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        log.info("job failed\n%s", traceback.format_exc())
    record["seconds"] = time.perf_counter() - start
    folder = os.environ.get(RECORDS)
    if folder:
        (Path(folder) / f"{int(hydra.job.num):06d}.json").write_text(json.dumps(record))
    elif record["error"]:
        raise RuntimeError(record["error"])
