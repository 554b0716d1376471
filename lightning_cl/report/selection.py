"""Which configuration is best on validation data. Test data take no part in it."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError

from .row import ComparisonRow
from .run import Run
from .settings import value_text
from .text import number


def lambda_key(row: ComparisonRow) -> str | None:
    """The row's setting that is a lambda, if there is one."""
    return next((key for key in row.settings if key.rpartition(".")[2] == "lambda_"), None)


def lambda_of(row: ComparisonRow) -> float | None:
    """The row's lambda as a number; None if it has none, or a word (``auto``)."""
    try:
        return number(float(row.settings[lambda_key(row) or ""]))
    except (KeyError, ValueError):
        return None


def by_lambda(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The rows, smallest lambda first, equal ones by name; those without one last."""
    found = [(lambda_of(row), row) for row in rows]
    place = [(float("inf") if value is None else value, row.label, i) for i, (value, row) in enumerate(found)]
    return [rows[i] for _, _, i in sorted(place)]


def best_on_validation(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The rows with the best mean validation average, smallest lambda first; several only if they are equal.

    Empty if nothing can be claimed: every row has to have a validation average for each of its finished runs, of which
    there is one at least. Left out beforehand are rows of which a run diverged: such a setting cannot be best.
    """
    usable = [row for row in rows if not row.diverged]
    means = [row.validation_average.mean for row in usable if row.n and row.validation_average.n == row.n]
    known = [value for value in means if value is not None]
    if not known or len(known) < len(usable):
        return []
    best = max(known) if usable[0].example.higher_is_better else min(known)
    return by_lambda([row for row, value in zip(usable, known, strict=True) if value == best])


def scores(best: Sequence[ComparisonRow]) -> str:
    """Of the first of equal rows: ``validation 98.1 ± 0.2 %, test 97.9 ± 0.1 %, n=3``, and what equals it."""
    row = best[0]
    show, unit = row.example.show, row.example.unit
    text = f"validation {row.validation_average.text(show)}{unit}, test {row.average_accuracy.text(show)}{unit}"
    equal = f"; equal on validation: {'; '.join(other.settings_text for other in best[1:])}" if len(best) > 1 else ""
    return f"{text}, n={row.n}{equal}"


def chosen(rows: Sequence[ComparisonRow]) -> dict[str, Any]:
    """The best of all methods' configurations on one stream, for scripts.

    Returns:
        ``{stream, method, settings, overrides, folders, seeds, validation, test}``; ``overrides`` are those of the
        command line that gave it, without the seed, or None where they were not kept.

    Raises:
        InputError: If there are several streams, or no configuration can be said to be best.
    """
    streams = sorted({f"{row.stream}, {row.scenario}" for row in rows})
    if len(streams) > 1:
        raise InputError(f"runs on {len(streams)} streams ({'; '.join(streams)})", "one stream", "give its folder only")
    # a method that was not validated at all is not in the running
    best = best_on_validation([row for row in rows if row.validation_average.n or row.diverged])
    if not best:
        raise InputError(
            "runs of which none can be called best on validation data",
            "finished runs with a validation metric",
            "run them with validation_fraction=0.1, as experiment=lambda_sweep does",
        )
    row = best[0]
    figures = {"validation": row.validation_average, "test": row.average_accuracy}
    return {
        "stream": row.stream,
        "method": row.method,
        "settings": row.settings,
        "overrides": overrides_of(row.runs[0]),
        "folders": [str(run.folder) for run in row.runs],
        "seeds": [run.results.get("seed") for run in row.runs],
        **{name: {"mean": figure.mean, "sd": figure.sd, "n": figure.n} for name, figure in figures.items()},
    }


def overrides_of(run: Run) -> list[str] | None:
    """The command line of a run without its seed; None if it was not kept."""
    import yaml

    try:
        content = yaml.safe_load(Path(run.folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(content, list):
        return None
    return [str(text) for text in content if str(text).lstrip("+").partition("=")[0] != "seed"]


def command_line(found: dict[str, Any]) -> str:
    """The overrides as one line that a shell takes, ``$(...)`` or, where one holds spaces or quotes, ``xargs``.

    Raises:
        InputError: If they were not kept.
    """
    if found["overrides"] is None:
        settings = ", ".join(f"{key}={value_text(value)}" for key, value in found["settings"].items())
        raise InputError(
            f"no .hydra/overrides.yaml in {found['folders'][0]!r} ({found['method']}: {settings or 'no settings'})",
            "a run of the command line",
            "--best --json says what else is known",
        )
    # quotes would reach the program as they are from $(...): none where there is no need
    return " ".join(shlex.quote(text) if re.search(r"[\s'\"\\]", text) else text for text in found["overrides"])
