"""From a config and a list of candidates to a ranking."""

import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from lightning_cl import app
from lightning_cl._messages import one_line
from lightning_cl._sections import recorded_config
from lightning_cl._types import refuse_wrong_kinds
from lightning_cl.errors import InputError
from lightning_cl.functional.ranking import kendall_w, ranks
from lightning_cl.importance_compute import composed
from lightning_cl.selection.candidates import RANDOM, Candidate, parse_candidate
from lightning_cl.selection.features import extract_features
from lightning_cl.selection.samples import Samples, is_text, samples_of
from lightning_cl.selection.scores import score_features

log = logging.getLogger(__name__)
SCORES = ("logme", "probe", "knn")


@dataclass
class SelectRequest:
    """What is to be compared.

    Args:
        candidates: See :func:`~lightning_cl.selection.parse_candidate`.
        overrides: Of the app's config (``stream=...``, ``data_dir=...``), none of ``model``.
        task: The task whose data are taken; all tasks' by default.
        max_samples: Use a class-balanced, seeded subset of this many training samples; None for all.
        k: Neighbours of the nearest-neighbour score.
        folds: Of the probe's cross-validation, where the stream holds out no validation data.
        batch_size: Samples at a time in the extraction.
        with_random: Compare each candidate that has pretrained weights with the same network without, too.
        cache: Folder of the features; None for none.
    """

    candidates: Sequence[str]
    overrides: Sequence[str] = ()
    task: int | None = None
    max_samples: int | None = 5000
    k: int = 20
    folds: int = 3
    batch_size: int = 64
    with_random: bool = False
    cache: Path | None = None


def select_models(request: SelectRequest, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Score every candidate's features of the stream's training data, and rank the candidates.

    A candidate that cannot be built has its reason in place of scores. The ranking is by the mean of the three ranks.

    Args:
        request: What is to be compared.
        progress: Called with the name of each candidate before it is looked at.

    Returns:
        Plain values: facts about the data, the candidates from best to worst (``name``, ``logme``, ``probe``, ``knn``,
        ``ranks``, ``mean_rank``, ``seconds_per_sample``, ``parameters``, ``bytes``, ``width``, ``overrides``; or
        ``error``), and ``agreement``, Kendall's W of the three rankings.

    Raises:
        InputError: For a stream or a list of candidates that is none.
    """
    _check(request)
    app.quiet()
    with composed(list(request.overrides)) as cfg:
        texts = is_text(OmegaConf.to_container(cfg.stream))  # type: ignore[arg-type]
        seed = int(cfg.seed)
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for text in _with_baselines(request, texts):
        if progress is not None:
            progress(text)
        try:
            candidate = parse_candidate(text, of_texts=texts)
            row, about = _scored(candidate, request, seed)
            facts = facts or about
        except Exception as error:  # anything may be wrong with one candidate; the others are looked at all the same
            log.debug("%s", text, exc_info=True)
            row = {"name": text, "error": one_line(error) or f"{type(error).__name__}: {error}"}
        rows.append(row)
    works = [row for row in rows if "error" not in row]
    by_score = {score: ranks([row[score] for row in works]) for score in SCORES}
    for i, row in enumerate(works):
        row["ranks"] = {score: by_score[score][i] for score in SCORES}
        row["mean_rank"] = sum(row["ranks"].values()) / len(SCORES)
    works.sort(key=lambda row: (row["mean_rank"], row["ranks"]["logme"]))
    return {
        "version": 1,
        **facts,
        "k": request.k,
        "folds": request.folds,
        "seed": seed,
        "agreement": kendall_w(list(by_score.values())),
        "candidates": [*works, *(row for row in rows if "error" in row)],
    }


def _check(request: SelectRequest) -> None:
    if not request.candidates:
        raise InputError("no candidates", "two or more", "candidates=[torchvision:resnet18,timm:resnet18,mlp]")
    of_model = [text for text in request.overrides if text.lstrip("+~").partition("=")[0].startswith("model")]
    if of_model:
        hint = f"candidates=['NAME {of_model[0]}']"
        raise InputError(f"{of_model[0]} beside candidates", "overrides of a model behind its candidate's name", hint)
    for name, least in (("k", 1), ("folds", 2), ("batch_size", 1)):
        if getattr(request, name) < least:
            raise InputError(f"{name}={getattr(request, name)}", f"an integer >= {least}", "leave it out")
    if request.max_samples is not None and request.max_samples < 10:
        raise InputError(f"max_samples={request.max_samples}", "an integer >= 10, or none", "leave it out for 5000")


def _with_baselines(request: SelectRequest, texts: bool) -> list[str]:
    found: list[str] = []
    for text in request.candidates:
        found.append(str(text))
        if request.with_random and _names_weights(str(text), texts):
            name, *extra = shlex.split(str(text))
            found.append(" ".join([name + RANDOM, *map(shlex.quote, extra)]))
    return list(dict.fromkeys(found))


def _names_weights(text: str, texts: bool) -> bool:
    try:
        return parse_candidate(text, of_texts=texts).own_weights
    except InputError:  # told in its line
        return False


def _scored(candidate: Candidate, request: SelectRequest, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    samples, backbone, device, workers, facts = _built(candidate, request)

    def features(data: Any) -> Any:
        key, size = " ".join(candidate.model), request.batch_size
        return extract_features(
            backbone, data, request.cache, key=key, batch_size=size, num_workers=workers, device=device
        )

    train = features(samples.train)
    held = None
    if samples.validation is not None:
        held = features(samples.validation).features, samples.validation.targets
    scores = score_features(train.features, samples.train.targets, held, k=request.k, folds=request.folds, seed=seed)
    row = {
        "name": candidate.name,
        **{score: getattr(scores, score) for score in SCORES},
        "probe_strength": scores.strength,
        "seconds_per_sample": train.seconds,
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "bytes": sum(p.numel() * p.element_size() for p in backbone.parameters()),
        "width": train.features.shape[1],
        "overrides": list(candidate.model),
    }
    return row, facts


def _built(
    candidate: Candidate, request: SelectRequest
) -> tuple[Samples, nn.Module, torch.device, int, dict[str, Any]]:
    """Samples as the candidate's pretrained weights expect them, its backbone, and what is said of the data."""
    with _config(request.overrides, candidate.inputs) as cfg:
        _normalize(cfg, candidate)
        stream = instantiate(cfg.stream, _convert_="all")
        tasks = _tasks(stream, request.task, cfg.limit_tasks)
        samples = samples_of(tasks, request.max_samples, int(cfg.seed))
        with _config(request.overrides, candidate.model) as own:
            module = app.build_module(own, stream)
            device = app.build_trainer(own)(logger=False, enable_checkpointing=False).strategy.root_device
        workers = int(cfg.num_workers)
    backbone = getattr(module, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise InputError(f"a {type(module).__name__} without backbone", "a model with one", "use model=custom")
    targets = samples.train.targets
    facts = {
        "stream": stream.name,
        "tasks": [task.name for task in tasks],
        "samples": len(samples.train),
        "available": sum(len(task.train) for task in tasks),
        "validation_samples": None if samples.validation is None else len(samples.validation),
        "classes": len(targets.unique()),
        "majority": float(targets.bincount().max()) / len(targets),
    }
    return samples, backbone.to(device), device, workers, facts


@contextmanager
def _config(overrides: Sequence[str], own: Sequence[str]) -> Any:
    with composed([*overrides, *own]) as cfg:
        refuse_wrong_kinds(recorded_config(cfg, "select"))
        yield cfg


def _normalize(cfg: DictConfig, candidate: Candidate) -> None:
    """Inputs normalised as pretrained weights expect them, where the stream's config does not say anything of it."""
    ours = str(cfg.stream.get("_target_", "")).endswith("build_stream")
    named = candidate.model[0] in ("model=torchvision", "model=timm", "model=hf_image")
    if ours and named and "normalize" not in cfg.stream:
        with open_dict(cfg):
            cfg.stream.normalize = "${lightning_cl.inputs:normalize}"


def _tasks(stream: Any, task: int | None, limit: int | None) -> list[Any]:
    tasks = list(stream)[:limit]
    if task is not None and not 0 <= task < len(tasks):
        raise InputError(f"--task {task}", f"0 to {len(tasks) - 1}", "leave it out for all tasks")
    return tasks if task is None else [tasks[task]]
