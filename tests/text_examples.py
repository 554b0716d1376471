"""Texts that a tiny model can learn, for the tests of streams, module and command."""

import random
from typing import Any

import torch

from lightning_cl._compat import seeded
from lightning_cl.finetuning import FineTuningModule, HFTextBackbone
from lightning_cl.streams import Classification, Stream, build_stream, text_lists

WORDS = {
    "bird": "robin crow finch owl wren",
    "fruit": "apple pear plum fig melon",
    "metal": "iron zinc copper tin lead",
    "river": "rhine nile thames volga seine",
}
FILLING = ["the", "a", "of", "and", "on", "near", "two", "old", "small", "big"]
TINY = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "vocab_size": 150,
}


def rows(n: int = 120, n_classes: int = 4) -> list[tuple[str, str]]:
    """Texts of one to eleven words, and their class: one to three words of it are in them."""
    draws = random.Random(0)
    found = []
    for i in range(n):
        label = list(WORDS)[i % n_classes]
        text = draws.choices(WORDS[label].split(), k=draws.randint(1, 3)) + draws.choices(
            FILLING, k=draws.randint(0, 8)
        )
        draws.shuffle(text)
        found.append((" ".join(text), label))
    return found


def source(n: int = 120, n_classes: int = 4, **options: Any) -> Classification:
    texts, labels = zip(*rows(n, n_classes), strict=True)
    return text_lists(texts, labels, **{"vocab_size": 150, "max_length": 16, **options})


def stream(scenario: str = "class_incremental", n_tasks: int = 2, **options: Any) -> Stream:
    data = options.pop("data", None) or source()
    return build_stream(data, scenario, n_tasks=n_tasks, **options)


def backbone(**changes: Any) -> HFTextBackbone:
    with seeded(3):
        return HFTextBackbone((16,), config={**TINY, **changes})


def module(**options: Any) -> FineTuningModule:
    changes = options.pop("config", {})
    return FineTuningModule(options.pop("backbone", None) or backbone(**changes), input_shape=(16,), **options)


def inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: leaf for name, leaf in batch.items() if name not in ("labels", "task")}
