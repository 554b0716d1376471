"""Kills runs with SIGKILL, goes on by the same command, and compares with runs that were left alone, to the bit.

    python scripts/kill_test.py --runs 48 --json kills.json        (about five minutes on one core)
    python scripts/kill_test.py --runs 7 --short --json kills.json
    python scripts/kill_test.py --runs 100 --all --json kills.json  (every method there is)

Kinds of kills, in turn: in training (in the middle of a step), in a checkpoint write, in consolidation, in evaluation,
between tasks, at any moment; every seventh run (every third with --short) is killed again after it has gone on. Each
run is a process of its own, forked from one that has imported everything; at any moment means a command like
``python -m lightning_cl ...`` in a new interpreter (forked too with --short). Compared are model, callbacks' states
(memory, importances, generators), optimizer, progress with the accuracy matrix, and results.json without times.
Steps that were repeated are counted in a log that every optimizer step writes. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
from kill_compare import contents, differences, repeated
from kill_points import Point, install

EVERY = 3  # checkpoint_every_n_steps
TRIES = 5  # places that a run does not come to, before another run is taken
COMMON = ["stream=split_digits", "batch_size=64", "trainer.max_epochs=2", "accelerator=cpu", "progress_bar=false",
          f"checkpoint_every_n_steps={EVERY}"]  # fmt: skip
SMALL = ["reference_methods=[]", "model.backbone.hidden=[64]"]
DROPOUT = ["reference_methods=[]", "model=custom", "model.backbone._target_=torch.nn.Sequential",
           "+model.backbone._args_=[{_target_:torch.nn.Flatten},{_target_:torch.nn.Linear,in_features:64,"
           "out_features:48},{_target_:torch.nn.BatchNorm1d,num_features:48},{_target_:torch.nn.ReLU},"
           "{_target_:torch.nn.Dropout,p:0.3}]"]  # fmt: skip
AUGMENT = ["+stream.augment={_target_:lightning_cl.streams.RandomCropFlip,padding:1}"]
#: name -> overrides
SCENARIOS = {
    "er": ["method=er", *DROPOUT, *AUGMENT, "scheduler=cosine"],
    "ewc+er": ["method=[ewc,er]", *DROPOUT, "validation_fraction=0.2", "select=best", "+callbacks.ewc.labels=mc",
               "scheduler=step", "scheduler.step_size=1"],
    "ewc": ["method=ewc", *SMALL, *AUGMENT, "optimizer_state=keep"],
    "naive": ["method=naive", *DROPOUT, "optimizer=sgd", "optimizer.momentum=0.9", "optimizer_state=keep"],
    "er separate": ["method=er", *SMALL, "+callbacks.er.mode=separate", "+callbacks.er.policy=class_balanced",
                    "+callbacks.er.fill=step", "+trainer.accumulate_grad_batches=2"],
    "er beside naive": ["method=er", "reference_methods=[naive]", "model.backbone.hidden=[64]", "limit_tasks=2"],
}  # fmt: skip
#: for --all: what goes with another method, and what has nothing to consolidate (others are found, which takes time)
BESIDE = {"wa": "[er,wa]", "balanced_fine_tuning": "[er,balanced_fine_tuning]"}
EXTRA = {"uniform": ["budget=0.75"]}  # a tenth of so little work is no step a task
NOTHING_TO_CONSOLIDATE = {"naive", "er beside naive", "joint", "cumulative", "from_scratch", "freezing", "keep",
                          "uniform", "gdumb", "shrink_and_perturb", "auto_freeze", "ema"}  # fmt: skip
METHODS = sorted(file.stem for file in (Path(__file__).parent.parent / "conf" / "method").glob("*.yaml"))
KINDS = ("train", "checkpoint write", "consolidation", "evaluation", "between tasks", "any moment")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=48, help="runs that are killed")
    parser.add_argument("--json", type=Path, help="where the list of runs is written")
    parser.add_argument("--short", action="store_true", help="three tasks, two scenarios")
    parser.add_argument("--all", action="store_true", help="one scenario for each method's config")
    parser.add_argument("--seed", type=int, default=0, help="of the places")
    arguments = parser.parse_args()
    _import_everything()
    if arguments.all:
        SCENARIOS.clear()
        SCENARIOS.update(
            {method: [f"method={BESIDE.get(method, method)}", *SMALL, *EXTRA.get(method, [])] for method in METHODS}
        )
    scenarios = list(SCENARIOS)[:2] if arguments.short else list(SCENARIOS)
    draw = random.Random(arguments.seed)
    rows: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp(prefix="kill-test-"))
    whole: dict[str, float] = {}
    i = -1
    while len(rows) < arguments.runs:
        i += 1
        kind = KINDS[i % len(KINDS)]
        name = scenarios[(i + i // len(KINDS)) % len(scenarios)]
        while kind == "consolidation" and name in NOTHING_TO_CONSOLIDATE:
            name = draw.choice(scenarios)
        command = [*COMMON, *SCENARIOS[name], *(["limit_tasks=3"] if arguments.short else [])]
        if name not in whole:
            start = time.perf_counter()
            assert run(command, folder / name, None) == 0, f"{name} failed: {folder / name}.txt"
            whole[name] = time.perf_counter() - start
        kills = 2 if i % (3 if arguments.short else 7) == 2 else 1
        try:
            rows.append(one(command, folder, name, kind, kills, draw, whole[name], arguments.short))
        except NeverMet:
            if kind == "consolidation":
                NOTHING_TO_CONSOLIDATE.add(name)
            if i > 3 * arguments.runs:
                raise
            continue
        verdict = "same" if rows[-1]["same"] else "DIFFERS"
        print(f"{len(rows):3d} {verdict}  {name:16s} {' then '.join(rows[-1]['killed'])}", flush=True)
    summary = summarize(rows)
    print(json.dumps(summary, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps({"summary": summary, "runs": rows}, indent=1) + "\n")
    if summary["ok"]:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")
    return 0 if summary["ok"] else 1


class NeverMet(Exception):
    """The run has no place of this kind."""


def one(
    command: list[str], folder: Path, name: str, kind: str, kills: int, draw: random.Random, seconds: float, short: bool
) -> dict[str, Any]:
    """Kill a run once or twice, go on, compare."""
    out = folder / f"{name} killed"
    shutil.rmtree(out, ignore_errors=True)
    Path(f"{out}.steps").unlink(missing_ok=True)
    killed: list[str] = []
    missed = 0
    while len(killed) < kills:
        point = place(kind, name, draw, seconds, 3 if short else 5) if not killed else second(draw)
        code = run(command, out, point, fork=short or point.kind != "moment" or name != "er")
        if code == 0 and killed:
            break  # it had come too far for a second one
        if code == 0:  # the moment came too late, or there is no such place
            shutil.rmtree(out)
            Path(f"{out}.steps").unlink(missing_ok=True)
            seconds /= 2
            missed += 1
            if missed == TRIES:
                raise NeverMet(f"{name}: {kind}")
            continue
        assert code == -signal.SIGKILL, f"exit code {code}, see {out}.txt"
        killed.append(describe(point))
    code = run(command, out, None)
    found = differences(contents(folder / name), contents(out)) if code == 0 else [f"exit code {code}"]
    return {"scenario": name, "kind": kind, "killed": killed, "same": not found, "differences": found[:20],
            "steps_repeated": repeated(Path(f"{out}.steps"))}  # fmt: skip


def place(kind: str, name: str, draw: random.Random, seconds: float, tasks: int) -> Point:
    """A random place of a kind."""
    inside = "references" if name == "er beside naive" and draw.random() < 0.7 else ""
    task = draw.randrange(2 if name == "er beside naive" else tasks)
    steps = 6 if name == "er separate" else 10
    if kind == "train":
        return Point("train", draw.choice([n for n in range(steps) if n % (steps // 2)]), task=task, inside=inside)
    if kind == "checkpoint write":
        file = draw.choice(["fit-", "fit-", "task", "sequence.json"])
        return Point("write", draw.randrange(4), draw.choice(["half", "before", "after"]), file=file, inside=inside)
    if kind == "consolidation":
        return Point("consolidate", draw.randrange(tasks), draw.choice(["start", "half", "half", "end"]))
    if kind == "evaluation":
        return Point("evaluate", draw.randrange(tasks))
    if kind == "between tasks":
        file = draw.choice(["sequence.json", "results.json", "model.ckpt"])
        # every third boundary is one between tasks; the others lie between stages
        n = {"sequence.json": 3 * task + 3, "results.json": draw.randrange(2), "model.ckpt": 0}[file]
        n = min(n, 6) if name == "er beside naive" else n
        how = "after" if file == "sequence.json" else draw.choice(["half", "before", "after"])
        return Point("write", n, how, file=file)
    return Point("moment", seconds=draw.uniform(0.1, 0.9) * seconds)


def second(draw: random.Random) -> Point:
    """A place that a run which goes on comes to, unless it was in its last task."""
    file = draw.choice(["fit-", "task", "results.json"])
    return Point("write", how=draw.choice(["half", "before", "after"]), file=file)


def describe(point: Point) -> str:
    values = {k: v for k, v in vars(point).items() if k != "kind" and v not in ("", 0)}
    return f"{point.kind} " + " ".join(
        f"{k}={v:.2f}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()
    )


def run(command: list[str], out: Path, point: Point | None, fork: bool = True) -> int:
    """Run a command in a process of its own; its exit code, negative for a signal."""
    command = [*command, f"hydra.run.dir='{out}'"]
    if not fork:
        child = subprocess.Popen(
            [sys.executable, "-m", "lightning_cl", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        pid = child.pid
    else:
        pid = os.fork()
        if pid == 0:
            _child(command, out, point)
    if point is not None and point.kind == "moment":
        begun = time.monotonic() if fork else None  # a new interpreter has a lot to import
        while begun is None or time.monotonic() < begun + point.seconds:
            if begun is None and (out / "sequence.json").is_file():
                begun = time.monotonic()
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _child(command: list[str], out: Path, point: Point | None) -> None:
    code = 1
    try:
        with open(f"{out}.txt", "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        from lightning_cl.cli import main

        install(point, Path(f"{out}.steps"))
        code = main(command)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _import_everything() -> None:
    """What every run needs; and one thread, because a fork copies only one."""
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torchmetrics.classification  # noqa: F401

    import lightning_cl.app
    import lightning_cl.report
    import lightning_cl.sequence
    import lightning_cl.streams  # noqa: F401

    torch.set_num_threads(1)


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    most = max((n for row in rows for n in row["steps_repeated"]), default=0)
    return {
        "runs": len(rows),
        "identical": sum(row["same"] for row in rows),
        "kills": sum(len(row["killed"]) for row in rows),
        "killed_twice": sum(len(row["killed"]) > 1 for row in rows),
        "runs_by_kind": {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS},
        "most_steps_repeated": most,
        "checkpoint_every_n_steps": EVERY,
        "ok": all(row["same"] for row in rows) and most <= EVERY,
    }


if __name__ == "__main__":
    sys.exit(main())
