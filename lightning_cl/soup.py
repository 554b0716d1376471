"""Model soups: the mean of a sweep's models."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_cl import app
from lightning_cl.checkpoints import read_model, refuse_other_models, write_model
from lightning_cl.errors import InputError
from lightning_cl.functional.interpolation import average_states
from lightning_cl.functional.soup import greedy_soup
from lightning_cl.importance_compute import composed, overrides_of, refuse_foreign_code
from lightning_cl.report.comparison import comparison_table
from lightning_cl.report.finding import find
from lightning_cl.report.run import Run, mean
from lightning_cl.sequence.evaluation import measured
from lightning_cl.sequence.settings import Settings
from lightning_cl.sequence.state import SequenceState
from lightning_cl.sequence.store import load_weights


@dataclass
class Ingredient:
    """One run: its model alone, and the soup when it was tried; ``name`` is its method, settings and seed.

    ``validation``, ``test`` and ``tried`` are means over tasks of the run's metric, None where not known.
    """

    name: str
    folder: Path
    model: dict[str, Any]
    validation: float | None = None
    test: float | None = None
    tried: float | None = None
    used: bool = True


@dataclass
class Soup:
    """What was cooked: its ingredients, the soup's own metric, and what a person should know."""

    how: str
    metric: str
    ingredients: list[Ingredient]
    validation: float | None = None
    test: float | None = None
    notes: list[str] = field(default_factory=list)


def cook(paths: Sequence[str | Path], out: str | Path, how: Literal["uniform", "greedy"] = "uniform") -> Soup:
    """Average the models of finished runs, and write the result as one checkpoint.

    Wortsman et al. 2022 (arXiv:2203.05482): models that were fine-tuned from the same pretrained weights with other
    settings can be averaged, and often beat the best of them. ``uniform`` takes all; ``greedy`` adds them in the order
    of their validation metric, each only if the mean gets no worse. The metric is the run's, a mean over its tasks, of
    the classes that all runs have learnt. Test data are measured but choose nothing.

    Args:
        paths: Run folders, or folders that hold some (a sweep's).
        out: The file to write, read by ``FineTuningModule.load_from_checkpoint(out, weights_only=True)``.
        how: ``"uniform"`` or ``"greedy"``.

    Raises:
        InputError: For fewer than two runs, models or classes or data that differ, or a greedy soup without validation
            data.
    """
    if how not in ("uniform", "greedy"):
        raise InputError(f"how={how!r}", "'uniform' or 'greedy'", "--how greedy")
    app.quiet()
    runs, notes = _finished(paths)
    labels = _labels(runs)
    ingredients = [
        Ingredient(labels.get(run.folder, str(run.folder)), run.folder, read_model(run.folder)) for run in runs
    ]
    names = [str(run.folder) for run in runs]
    refuse_other_models([each.model for each in ingredients], names)
    _refuse_other_tasks(runs)
    kitchen = _Kitchen(runs[0])
    if how == "greedy" and not kitchen.validation:
        raise InputError(
            "a greedy soup of runs without validation data", "a validation split", "sweep with validation_fraction=0.1"
        )
    fair = _same_split(runs)
    if how == "greedy" and not fair:
        raise InputError(
            "a greedy soup of runs with different validation splits",
            "data that no ingredient was trained on",
            "sweep with one seed, or with stream.seed=0 seed=0,1,2",
        )
    if not fair and kitchen.validation:
        notes.append("the runs split training and validation data differently: validation is not shown")
        kitchen.validation = []
    states = [each.model["state_dict"] for each in ingredients]
    for each, state in zip(ingredients, states, strict=True):
        each.validation, each.test = kitchen.taste(state)
    kept = list(range(len(states)))
    if how == "greedy":
        own = [each.validation for each in ingredients]
        kept, tried = greedy_soup(
            own,  # type: ignore[arg-type]
            lambda chosen: kitchen.taste(average_states([states[i] for i in chosen]))[0] or 0.0,
            kitchen.higher_is_better,
        )
        for i, each in enumerate(ingredients):
            each.tried, each.used = tried[i], i in kept
    soup = Soup(how, kitchen.metric, ingredients, notes=notes)
    result = average_states([states[i] for i in kept])
    soup.validation, soup.test = kitchen.taste(result)
    write_model(Path(out), ingredients[kept[0]].model, result, soup={"how": how, "of": len(kept)})
    return soup


def _finished(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    runs, unreadable = find(Path(path) for path in paths)
    done = [run for run in runs if run.status == "finished" and (run.folder / "model.ckpt").is_file()]
    notes = [f"left out: {line}" for line in unreadable]
    notes += [f"left out, not finished: {run.folder}" for run in runs if run not in done]
    if len(done) < 2:
        raise InputError(f"{len(done)} finished run(s)", "two or more", "give a sweep's folder, or several run folders")
    return done, notes


def _labels(runs: Sequence[Run]) -> dict[Path, str]:
    """Of each run what tells it from the others; a copy of another run has none."""
    rows = comparison_table(list(runs))
    return {run.folder: f"{row.label}, seed {run.results.get('seed')}" for row in rows for run in row.runs}


def _refuse_other_tasks(runs: Sequence[Run]) -> None:
    for run in runs[1:]:
        for key in ("stream", "scenario", "task_names", "n_test"):
            ours, theirs = (each.results.get(key) for each in (runs[0], run))
            if ours != theirs:
                raise InputError(
                    f"{key}={theirs!r} in {str(run.folder)!r}, {ours!r} in {str(runs[0].folder)!r}",
                    "runs of one stream",
                    "give one sweep's folder",
                )


def _same_split(runs: Sequence[Run]) -> bool:
    """Whether all of them held out the same validation samples, as far as their configs say."""
    streams = [(run.results.get("config") or {}).get("stream") for run in runs]
    return all(stream == streams[0] for stream in streams)


class _Kitchen:
    """Measures weights on a run's tasks, with the run's own config."""

    def __init__(self, run: Run) -> None:
        with composed(overrides_of(run)) as cfg:
            refuse_foreign_code(OmegaConf.to_container(cfg), run.folder)
            self.stream = instantiate(cfg.stream, _convert_="all")
            self.module = app.build_module(cfg, self.stream)
            settings = Settings(
                trainer=app.build_trainer(cfg),
                metric=cfg.metric,
                higher_is_better=cfg.higher_is_better,
                eval_batch_size=cfg.eval_batch_size,
                num_workers=cfg.num_workers,
                progress_bar=False,
            )
        self.metric, self.higher_is_better = cfg.metric, cfg.higher_is_better
        self.state = SequenceState(self.module, self.stream, [], settings)
        load_weights(self.module, read_model(run.folder), run.folder)
        tasks = self.stream[: run.learned]
        self.tests = [task.test for task in tasks]
        self.validation = [task.validation for task in tasks if task.validation is not None]

    def taste(self, weights: dict[str, Any]) -> tuple[float | None, float | None]:
        """Means over tasks: validation, test."""
        self.module.load_state_dict(weights)
        row = measured(self.state, self.module, [*self.validation, *self.tests])[self.metric]
        return mean(row[: len(self.validation)]), mean(row[len(self.validation) :])
