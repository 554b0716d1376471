"""From runs to ranked rows."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .row import ComparisonRow
from .run import Run
from .selection import best_on_validation, by_lambda
from .settings import TARGET, comparable, defines_tasks, differing, flat, seeds, short_names, shown_values


def comparison_table(runs: Iterable[Run]) -> list[ComparisonRow]:
    """One row per stream, method and configuration, over seeds; streams by name, within each the best row first.

    Runs of one stream name are on different streams when their scenario, metric, number of tasks or task-defining
    settings differ: they are never ranked against each other. Rows of one method are told apart by the configuration
    keys that differ between them, seeds and places (data_dir, num_workers, logger, ...) aside. Only finished runs are
    counted. Rank is by mean average accuracy on test data in the direction of the metric, equal means sharing a rank.
    The best configuration on validation data is marked apart from it.

    Warns:
        UserWarning: For runs that repeat another one with the same configuration and seeds; the first one is kept.
    """
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        results = run.results
        groups[run.stream, str(results.get("scenario")), run.metric, run.higher_is_better].append(run)
    rows: list[ComparisonRow] = []
    for (stream, scenario, _, higher), members in sorted(groups.items(), key=lambda item: item[0]):
        for label, same in _streams(stream, members):
            ranked = [row for method in _methods(same) for row in _rows(label, scenario, method)]
            rows += _rank(ranked, higher)
    return rows


def _streams(name: str, runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs of one stream name, split where the tasks are not the same."""
    configs = [flat(run.results.get("config")) for run in runs]
    tasks = [{key: value for key, value in config.items() if defines_tasks(key)} for config in configs]
    if not differing(tasks):
        tasks = [{"stream.n_tasks": len(run.task_names)} for run in runs]
    return [
        (f"{name} ({_text(labels)})" if labels else name, [runs[i] for i in indices])
        for labels, indices in _split(tasks)
    ]


def _methods(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.method].append(run)
    return [groups[name] for name in sorted(groups)]


def _split(configs: Sequence[dict[str, Any]]) -> list[tuple[dict[str, str], list[int]]]:
    """Positions of equal configs, each group with the settings in which it differs from the other groups."""
    keys = differing(configs)
    names = short_names(keys)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, config in enumerate(configs):
        groups[repr([comparable(config.get(key, ...)) for key in keys])].append(i)
    values = {key: shown_values([config.get(key, ...) for config in configs]) for key in keys}
    return [
        (
            {names[key]: values[key][indices[0]] for key in keys if not _is_anothers(key, configs[indices[0]], keys)},
            indices,
        )
        for indices in groups.values()
    ]


def _is_anothers(key: str, config: dict[str, Any], keys: Sequence[str]) -> bool:
    """Whether the key is missing because its section builds something else here, which is said anyway."""
    return key not in config and f"{key.rpartition('.')[0]}.{TARGET}" in keys


def _text(settings: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _rows(stream: str, scenario: str, runs: Sequence[Run]) -> list[ComparisonRow]:
    """One method's configurations on one stream."""
    rows = []
    for settings, indices in _split([flat(run.results.get("config")) for run in runs]):
        members = _once([runs[i] for i in indices])
        finished = [run for run in members if run.status == "finished"]
        unfinished = [run for run in members if run.status != "finished"]
        rows.append(ComparisonRow(stream, scenario, members[0].method, settings, finished, unfinished))
    best = best_on_validation(rows) if len(rows) > 1 else []
    for row in rows if best else []:
        row.best_on_validation = any(row is one for one in best)
    return rows


def _once(runs: Sequence[Run]) -> list[Run]:
    """One run for the same seeds, a finished one before others: a copy is not another seed."""
    kept: dict[tuple[str, ...], Run] = {}
    for run in sorted(runs, key=lambda run: run.status != "finished"):
        own = sorted(seeds(run.results.get("config")).items())
        key = (repr(run.results.get("seed")), repr(run.results.get("class_order_seed")), repr(own))
        if key in kept and run.status == "finished":
            message = f"left out: {str(run.folder)!r} repeats {str(kept[key].folder)!r} (same configuration and seeds)"
            warnings.warn(message, UserWarning, stacklevel=5)
        kept.setdefault(key, run)
    return sorted(kept.values(), key=lambda run: (str(type(run.results.get("seed"))), run.results.get("seed") or 0))


def _rank(rows: list[ComparisonRow], higher: bool) -> list[ComparisonRow]:
    sign = -1.0 if higher else 1.0
    means = {id(row): row.average_accuracy.mean for row in rows}
    known = sorted(sign * value for value in means.values() if value is not None)
    for row in rows:
        value = means[id(row)]
        row.rank = None if value is None else 1 + known.index(sign * value)
    return sorted(by_lambda(rows), key=lambda row: (row.rank is None, row.rank or 0, row.method))
