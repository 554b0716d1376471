"""Adapters are put in from a config of plain values."""

import json
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.finetuning import _adapter_record as record
from lightning_cl.finetuning._adapter_layers import within
from lightning_cl.functional.seeding import derive_seed

log = logging.getLogger(__name__)


def request(
    kind: str,
    targets: str | Sequence[str],
    rank: int,
    alpha: float,
    dropout: float,
    head: str | Sequence[str] | None,
    also_train: str | Sequence[str],
    options: dict[str, Any] | None,
    seed: int,
) -> dict[str, Any]:
    """The arguments of :func:`add_adapters` as plain values.

    Raises:
        InputError: For values outside the ranges.
    """
    if kind not in ("lora", "ia3"):
        raise InputError(f"kind={kind!r}", "'lora' or 'ia3'", "leave it out for 'lora'")
    if not targets:
        raise InputError(f"targets={targets!r}", "names of layers, or 'auto'", "leave it out for 'auto'")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError(f"rank={rank!r}", "an integer >= 1", "try rank=8")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not alpha > 0:
        raise InputError(f"alpha={alpha!r}", "a number > 0", "try alpha=16, twice the rank")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout!r}", "a number in [0, 1)", "leave it out for 0")
    try:
        options = json.loads(json.dumps(dict(options or {})))
    except (TypeError, ValueError) as error:
        raise InputError(f"options={options!r}", "plain values", "give numbers, strings and lists") from error
    own = {"target_modules", "r", "lora_alpha", "lora_dropout", "feedforward_modules", "modules_to_save"} & {*options}
    if own:
        raise InputError(
            f"options {sorted(own)}", "what has no argument here", "use targets, rank, alpha, dropout, head"
        )
    lora = {"rank": rank, "alpha": alpha, "dropout": dropout} if kind == "lora" else {}
    return {
        "version": 1,
        "kind": kind,
        "targets": targets if isinstance(targets, str) else list(targets),
        **lora,
        "head": head if head is None or isinstance(head, str) else list(head),
        "also_train": [also_train] if isinstance(also_train, str) else list(also_train),
        "options": options,
        "seed": seed,
    }


def build(model: Any, config: dict[str, Any]) -> Any:
    """Put in the adapters that a config names layer by layer.

    Raises:
        InputError: If the module has adapters, or lacks a layer.
    """
    peft = _peft()
    refuse_adapted(model)
    missing = {*config["layers"], *config["heads"]} - {"rule", *(name for name, _ in model.named_modules())}
    if missing:
        raise InputError(
            f"adapters for {min(missing)!r}, which {type(model).__name__} does not have",
            "the module that they were made for",
            "strip='model.' of load_adapters takes a prefix from the names",
        )
    before = {id(p): p.requires_grad for p in model.parameters()}
    were_frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    also = _also_trained(model, config["also_train"])
    kept = [p for name, p in model.named_parameters() if within(name, config["heads"])]
    with warnings.catch_warnings(), _compat.seeded(derive_seed(config["seed"], "adapters")):
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out is set to False.*")
        peft.inject_adapter_in_model(_peft_config(peft, config), model)
    for parameter in kept:
        parameter.requires_grad_(before[id(parameter)])
    for parameter in also:
        parameter.requires_grad_(True)
    trained = {id(p) for p in model.parameters() if p.requires_grad} | {id(p) for p in kept}
    record.note(model, config, trained, were_frozen)
    if "adapters" in getattr(model, "hparams", {}):
        model.hparams["adapters"] = config
    n = adapter_counts(model)
    log.info(
        "%s on %d layers of %s: %d of %d parameters train (%.2f %%), %d of them the head's",
        *(config["kind"], len(config["layers"]), type(model).__name__, n["trained"], n["total"]),
        *(100 * n["trained"] / n["total"], n["head"]),
    )
    return model


def adapter_counts(model: nn.Module) -> dict[str, int]:
    """How many parameters train, how many of them are the head's, and how many there are."""
    model = record.adapted(model)
    config = record.record_of(model)["config"]  # type: ignore[index]
    trained = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    return {
        "trained": sum(n for _, n in trained),
        "head": sum(n for name, n in trained if within(name, config["heads"])),
        "total": sum(p.numel() for p in model.parameters()),
    }


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("adapters without peft", "the package peft", "pip install 'lightning-cl[hf]'") from error
    return peft


def _peft_config(peft: Any, config: dict[str, Any]) -> Any:
    def names(layers: Sequence[str]) -> str:
        # a string is matched against the whole name; a list would match ends of names
        return "|".join(re.escape(layer) for layer in layers)

    common = {"target_modules": names(config["layers"]), **config["options"]}
    try:
        if config["kind"] == "ia3":
            return peft.IA3Config(feedforward_modules=names(config["narrowing"]) or [], **common)
        given = {"r": config["rank"], "lora_alpha": config["alpha"], "lora_dropout": config["dropout"]}
        return peft.LoraConfig(**given, **common)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"options={config['options']!r} ({error})",
            f"arguments of peft's {config['kind']} config",
            "see peft's docs",
        ) from error


def refuse_adapted(model: nn.Module) -> None:
    """Refuse a module that has adapters already: another set would be put around the first."""
    wrapped = [name for name, part in model.named_modules() if hasattr(part, "base_layer")]
    if wrapped or record.record_of(model):
        raise InputError(
            f"{type(model).__name__} with adapters already, at {', '.join(map(repr, wrapped[:3]))}",
            "a module without",
            "merge_adapters(model) first",
        )


def _also_trained(model: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []
    for pattern in patterns:
        try:
            matches = [p for name, p in model.named_parameters() if re.search(pattern, name)]
        except (re.error, TypeError) as error:
            raise InputError(
                f"also_train={pattern!r} ({error})", "a regular expression, or a list of them", "try 'norm'"
            ) from error
        if not matches:
            examples = ", ".join(name for name, _ in list(model.named_parameters())[:4])
            raise InputError(f"also_train={pattern!r}", "a pattern found in a parameter's name", f"they are {examples}")
        found += matches
    return found
