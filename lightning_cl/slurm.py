"""Getting the machine back: a Slurm job that was told to stop asks to be queued again. Imports nothing heavy."""

import logging
import os
import re
import subprocess

log = logging.getLogger(__name__)
SWITCH = "LIGHTNING_CL_REQUEUE"


def job_id() -> str | None:
    """The job this process is part of, ``12`` or ``12_3`` of an array; None outside Slurm, or where it is switched off.

    ``LIGHTNING_CL_REQUEUE=0`` switches requeueing off.
    """
    if os.environ.get(SWITCH) == "0" or not os.environ.get("SLURM_JOB_ID"):
        return None
    array, place = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    found = f"{array}_{place}" if array and place else os.environ["SLURM_JOB_ID"]
    return found if re.fullmatch(r"\d+(_\d+)?", found) else None


def requeue() -> bool:
    """Ask Slurm to queue this job again; the first process of a job does it for all.

    A job that is not running any more has been cancelled, or is being requeued already: then nothing is asked.

    Returns:
        Whether Slurm has agreed.
    """
    job = job_id()
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return False
    if _ask("squeue", "--noheader", "--jobs", job, "--format", "%T") != "RUNNING":
        return False
    answer = _ask("scontrol", "requeue", job)
    log.info("job %s requeued" if answer is not None else "job %s could not be requeued", job)
    return answer is not None


def _ask(*command: str) -> str | None:
    """What a command of Slurm prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s: %s", command[0], error)
        return None
    if done.returncode:
        log.warning("%s: %s", " ".join(command), " ".join(done.stderr.split()))
        return None
    return done.stdout.strip()
