#!/usr/bin/env python3
"""Run published tables by their own protocols, and put our numbers beside theirs.

    python scripts/reproduce_tables.py hsu2018 --seeds 5 --jobs 2      # needs MNIST: --data-dir or $LIGHTNING_CL_DATA
    python scripts/reproduce_tables.py hsu2018 --rows task/ewc "class/*" --seeds 2
    python scripts/reproduce_tables.py der2020 --quick                 # a few steps of each row, to see that it works

Rows are those of docs/targets.yaml. Each run is a `lightning-cl` process of its own in a folder of its own under --out:
the same command finds finished runs, and goes on with runs that were killed. Writes TABLE.md and TABLE.json there.
"""

import argparse
import fnmatch
import functools
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

TARGETS = Path(__file__).resolve().parent.parent / "docs" / "targets.yaml"
COMMON = ["accelerator=cpu", "progress_bar=false", "reference_methods=[]"]
QUICK = ["++trainer.max_steps=3", "limit_tasks=2"]
DIGITS = ["stream.dataset._target_=lightning_cl.streams.digits", "~stream.dataset.data_dir", "~stream.dataset.download"]
HEADER = ("scenario", "method", "published", "ours", "seeds", "standard error", "verdict")
Row = dict[str, Any]


# rows ------------------------------------------------------------------------------------------------------------


def rows_of(table: str, patterns: list[str]) -> list[Row]:
    """The rows of which a pattern names scenario, method, or both: ``task/ewc``, with a memory ``task/er-200``."""
    document = yaml.safe_load(TARGETS.read_text())[table]
    shared = {key: document[key] for key in ("spread_is", "runs")}
    rows = [{**shared, "overrides": [], **row} for row in document["rows"]]
    names = [{row["scenario"], row["method"], of := name_of(row), of.partition("-")[0]} for row in rows]
    wanted = [any(fnmatch.filter(of, pattern) for pattern in patterns) for of in names]
    chosen = [row for row, yes in zip(rows, wanted, strict=True) if yes]
    if not chosen:
        known = ", ".join(map(name_of, rows))
        sys.exit(f"error: --rows {' '.join(patterns)}; expected names out of {known}. HINT: leave it out for all")
    return chosen


def name_of(row: Row) -> str:
    """``task/ewc``, or ``class/er-200`` for a row with a memory."""
    return f"{row['scenario']}/{row['method']}" + (f"-{row['memory']}" if "memory" in row else "")


def overrides_of(row: Row, seed: int) -> list[str]:
    """What ``lightning-cl`` is given for one run; where it runs is no part of it."""
    return [f"experiment={row['experiment']}", f"method={row['method']}", f"seed={seed}", *row["overrides"], *COMMON]


def tolerance(row: Row) -> float | None:
    """Points below the published value that pass; None where no spread was published."""
    if "tolerance" in row:
        return float(row["tolerance"])
    if "spread" not in row:
        return None
    deviation = row["spread"] * (math.sqrt(row["runs"]) if row["spread_is"] == "standard error" else 1)
    return max(2 * deviation, 1.0)


def verdict(row: Row, mean: float) -> str:
    """``above``, ``within`` or ``below``, by the tolerance; the plain difference where there is none."""
    allowed, difference = tolerance(row), mean - row["value"]
    if allowed is None:
        return f"{difference:+.2f}"
    return "within" if abs(difference) <= allowed else "above" if difference > 0 else f"below by {-difference:.2f}"


# runs ------------------------------------------------------------------------------------------------------------


class Runs:
    """The runs of one call: where they are, and what has come of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out, self.data_dir, self.quick = Path(arguments.out), Path(arguments.data_dir), arguments.quick
        # a check that it works needs no data set; a number does
        self.digits = self.quick and not (self.data_dir / "MNIST").is_dir()
        self.extra = [*(QUICK if self.quick else []), *(DIGITS if self.digits else [])]

    def overrides(self, row: Row, seed: int) -> list[str]:
        """What identifies a run."""
        return overrides_of(row, seed) + self.extra

    def folder(self, row: Row, seed: int) -> Path:
        """A function of the run, so that two columns of a table share it and changed overrides do not."""
        digest = hashlib.blake2b("\n".join(self.overrides(row, 0)).encode(), digest_size=4).hexdigest()
        return self.out / row["experiment"] / f"{row['method']}-{digest}" / f"seed={seed}"

    def written(self, row: Row, seed: int, name: str) -> dict[str, Any]:
        """A file of a run, or nothing; ``same`` says whether the run had the config as it is now."""
        file = self.folder(row, seed) / name
        found = json.loads(file.read_text()) if file.is_file() else {}
        return {**found, "same": bool(found) and found["config_hash"] == hash_of(*self.overrides(row, seed))}

    def results(self, row: Row, seed: int) -> dict[str, Any] | None:
        """Results of a finished run."""
        results = self.written(row, seed, "results.json")
        return results if results["same"] and results["status"] == "finished" else None

    def values(self, row: Row, seeds: int) -> dict[int, float]:
        """Accuracy in % by seed, of the runs that are finished."""
        found = {seed: self.results(row, seed) for seed in range(seeds)}
        where = row.get("metric")
        return {
            seed: 100 * (results["other_metrics"][where]["average"] if where else results["average_accuracy"])
            for seed, results in found.items()
            if results
        }

    def start(self, row: Row, seed: int, resume: str) -> str | None:
        """Run it in a process of one thread; what went wrong, in one line."""
        folder, data = self.folder(row, seed), [] if self.digits else [f"data_dir='{self.data_dir}'"]
        where = [*data, f"resume={resume}", f"hydra.run.dir='{folder}'"]
        done = subprocess.run(
            [sys.executable, "-m", "lightning_cl", *self.overrides(row, seed), *where],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else None


@functools.cache
def hash_of(*overrides: str) -> str:
    """The hash that a run's own process writes down. Hydra composes in one thread only."""
    from hydra import compose, initialize_config_dir

    from lightning_cl._conf import conf_dir, method_name, register_resolvers
    from lightning_cl._overrides import with_plus
    from lightning_cl._sections import recorded_config
    from lightning_cl.sequence.identity import config_hash

    register_resolvers()
    given = with_plus(overrides)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return config_hash(recorded_config(compose("config", given), method_name(overrides)))


# tables ----------------------------------------------------------------------------------------------------------


def summary(row: Row, values: dict[int, float]) -> Row:
    """The row with our numbers beside the published one."""
    mean = statistics.fmean(values.values()) if values else None
    deviation = statistics.stdev(values.values()) if len(values) > 1 else None
    return {
        **row,
        "ours": {
            "mean": mean,
            "standard_deviation": deviation,
            "standard_error": deviation / math.sqrt(len(values)) if deviation is not None else None,
            "seeds": len(values),
            "values": values,
        },
        "tolerance": tolerance(row),
        "verdict": verdict(row, mean) if mean is not None else None,
    }


def cells(entry: Row) -> list[str]:
    """One line of the table, as texts under HEADER."""
    ours, spread = entry["ours"], entry.get("spread")
    published = f"{entry['value']:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")
    published += " (figure)" if entry["read"] == "figure" else ""
    mean, deviation, error = ours["mean"], ours["standard_deviation"], ours["standard_error"]
    mine = "" if mean is None else f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
    rest = [str(ours["seeds"]), "" if error is None else f"{error:.2f}", entry["verdict"] or ""]
    return [entry["scenario"], name_of(entry).partition("/")[2], published, mine, *rest]


def markdown(table: str, entries: list[Row], quick: bool) -> str:
    """The table for people, with what each column is."""
    document = yaml.safe_load(TARGETS.read_text())[table]
    lines = [f"# {table}", "", document["source"], "", document["stream"], ""]
    lines += ["**A few steps only: these are no results.**", ""] if quick else []
    lines += [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    lines += [f"| {' | '.join(cells(entry))} |" for entry in entries]
    spread = (
        f"Published ±: {document['spread_is']} over {document['runs']} runs. Ours: standard deviation over the seeds."
    )
    notes = [f"- {name_of(entry)}: {entry['note']}" for entry in entries if "note" in entry]
    return "\n".join([*lines, "", spread, *(["", *notes] if notes else []), ""])


def shown(entries: list[Row]) -> Table:
    """The table for the terminal."""
    table = Table(*HEADER)
    for entry in entries:
        table.add_row(*cells(entry))
    return table


def reproduce(table: str, arguments: argparse.Namespace, console: Console) -> int:
    """Run what is missing of a table, and write it; returns how many runs failed."""
    runs, rows, seeds = Runs(arguments), rows_of(table, arguments.rows), arguments.seeds
    wanted = {runs.folder(row, seed): (row, seed) for seed in range(seeds) for row in rows}
    entries = [summary(row, runs.values(row, seeds)) for row in rows]
    _write(runs, table, rows, seeds)
    failed = 0
    with Live(shown(entries), console=console, auto_refresh=False) as live, ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {}
        for row, seed in wanted.values():
            if not runs.results(row, seed):
                begun = runs.written(row, seed, "sequence.json")
                resume = "auto" if begun["same"] or len(begun) == 1 else "never"  # the configs have changed since
                futures[pool.submit(runs.start, row, seed, resume)] = f"{row['experiment']} {row['method']} seed={seed}"
        try:
            for future in as_completed(futures):
                error = future.result()
                failed += error is not None
                live.console.print(f"{futures[future]}: {error or 'done'}", highlight=False, soft_wrap=True)
                entries = [summary(row, runs.values(row, seeds)) for row in rows]
                live.update(shown(entries), refresh=True)
                _write(runs, table, rows, seeds)
        finally:
            pool.shutdown(cancel_futures=True)
    return failed


def _write(runs: Runs, table: str, rows: list[Row], seeds: int) -> None:
    """The rows asked for, and those that earlier calls have finished runs of."""
    from lightning_cl.files import write_json, write_text

    found = [(row, runs.values(row, seeds)) for row in rows_of(table, ["*"])]
    entries = [summary(row, values) for row, values in found if values or row in rows]
    write_text(runs.out / f"{table}.md", markdown(table, entries, runs.quick))
    write_json(runs.out / f"{table}.json", entries)


def main() -> int:
    """Reproduce the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=list(yaml.safe_load(TARGETS.read_text())))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 .. N-1")
    parser.add_argument("--rows", nargs="+", default=["*"], help="scenario, method or scenario/method, with wildcards")
    parser.add_argument("--data-dir", default=os.environ.get("LIGHTNING_CL_DATA", "data"))
    parser.add_argument("--out", default="runs/tables", help="folder of the runs and the tables")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--quick", action="store_true", help="three steps of two tasks (without MNIST: of digits)")
    arguments = parser.parse_args()
    console = Console()
    return 1 if sum(reproduce(table, arguments, console) for table in arguments.tables) else 0


if __name__ == "__main__":
    sys.exit(main())
