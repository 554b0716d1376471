"""Adam's first moment of a unit that only one sample of late has made fire is a multiple of that sample."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_cl import DGR, FineTuningModule, run_sequence
from lightning_cl.finetuning import MLP
from lightning_cl.streams import Classification, TensorData, class_incremental
from tests.privacy.pictures import SHAPE, Pictures, Search


def learn(folder: Path, callbacks: list[Any], **options: Any) -> list[str]:
    """What is a multiple of a sample in the files that are left."""
    train, test = Pictures(), Pictures(test=True)
    data = Classification(
        *(TensorData(part.x, torch.tensor(part.targets)) for part in (train, test)), [f"class {i}" for i in range(4)]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = FineTuningModule(
            MLP(SHAPE, hidden=(200,)), input_shape=SHAPE, optimizer=partial(torch.optim.Adam, lr=0.02)
        )
    run_sequence(
        module, class_incremental(data, 2), callbacks, run_dir=folder, batch_size=2, progress_bar=False,
        trainer=partial(Trainer, max_epochs=3, accelerator="cpu", enable_progress_bar=False), **options,
    )  # fmt: skip
    search = Search(train.x)
    return [place for path in sorted(folder.rglob("*.ckpt")) for place in search.multiples_in(path)]


def test_the_models_optimizer(tmp_path: Path):
    assert learn(tmp_path / "reset", []) == []
    kept = learn(tmp_path / "keep", [], optimizer_state="keep")
    assert kept
    assert all(".learner.ckpt" in place for place in kept), "a model that is deployed has no optimizer"


def test_the_generators_optimizer(tmp_path: Path):
    options: Any = {"hidden": (200,), "latent": 4, "lr": 0.02, "weights": (1.0, 0.0)}
    assert learn(tmp_path / "reset", [DGR(**options)]) == []
    assert learn(tmp_path / "keep", [DGR(optimizer_state="keep", **options)])


@pytest.mark.parametrize("scale", [1.0, -3e-7])
def test_what_the_search_finds(scale: float, tmp_path: Path):
    samples = Pictures().x
    file = tmp_path / "x.ckpt"
    torch.save({"m": torch.stack([torch.rand(24), scale * samples[3].flatten() + 0.1 * scale])}, file)
    assert Search(samples).multiples_in(file)
    torch.save({"m": torch.rand(50, 24)}, file)
    assert Search(samples).multiples_in(file) == []
