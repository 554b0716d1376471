"""LightningModules that other people packaged, each with a data set for two tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


@dataclass
class Project:
    """How to make the module and the loader of a task; ``root`` is the Lightning package that it is written for."""

    module: Callable[[], Any]
    loader: Callable[[int], DataLoader]
    lambda_: float
    root: str = "lightning.pytorch"
    replay: str = ""  # what Replay refuses it with


class Items(Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def normal(task: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(task)) * (1 + task) + task


def boring() -> Project:
    """Batches that are a bare tensor; Lightning's own demo."""
    from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset

    def loader(task: int) -> DataLoader:
        dataset = RandomDataset(32, 24)
        dataset.data = normal(task, 24, 32)
        return DataLoader(dataset, batch_size=8)

    return Project(BoringModel, loader, 0.5)


def manual_boring() -> Project:
    """Manual optimization with one optimizer; Lightning's own demo."""
    from lightning.pytorch.demos.boring_classes import ManualOptimBoringModel

    return Project(ManualOptimBoringModel, boring().loader, 0.1)


def transformer() -> Project:
    """Attention, and pairs of token sequences, of which a sample has many targets; Lightning's own demo."""
    from lightning.pytorch.demos.transformer import LightningTransformer

    def module() -> Any:
        made = LightningTransformer(vocab_size=11)
        made.prepare_data = lambda: None  # it would download its data set
        return made

    def loader(task: int) -> DataLoader:
        tokens = torch.randint(0, 11, (12, 7), generator=torch.Generator().manual_seed(task))
        return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=4)

    return Project(module, loader, 1.0)


def ts3l() -> Project:
    """``pytorch_lightning``; ``training_step(batch)``; a list that grows at every step; squeezes its output."""
    from ts3l.pl_modules import SCARFLightning
    from ts3l.utils.backbone_utils import MLPBackboneConfig
    from ts3l.utils.embedding_utils import IdentityEmbeddingConfig
    from ts3l.utils.scarf_utils import SCARFConfig

    def module() -> Any:
        made = SCARFLightning(
            SCARFConfig(
                task="classification",
                loss_fn="CrossEntropyLoss",
                metric="accuracy_score",
                embedding_config=IdentityEmbeddingConfig(input_dim=6),
                backbone_config=MLPBackboneConfig(input_dim=6, hidden_dims=16, output_dim=16),
                output_dim=3,
                pretraining_head_dim=8,
            )
        )
        made.set_second_phase(freeze_encoder=False)
        return made

    def loader(task: int) -> DataLoader:
        y = torch.arange(24) % 3
        return DataLoader(TensorDataset(normal(task, 24, 6) + y[:, None], y), batch_size=8)

    return Project(module, loader, 100.0, root="pytorch_lightning")


def gluonts() -> Project:
    """Dicts of tensors and lists of strings."""
    import numpy as np
    from gluonts.torch.batchify import batchify
    from gluonts.torch.model.d_linear.lightning_module import DLinearLightningModule

    def module() -> Any:
        return DLinearLightningModule({"prediction_length": 3, "context_length": 12, "hidden_dimension": 4})

    def loader(task: int) -> DataLoader:
        series = normal(task, 20, 15).numpy().astype(np.float32)
        items = [
            {
                "item_id": f"series {task}.{i}",
                "past_target": row[:12],
                "past_observed_values": np.ones(12, np.float32),
                "future_target": row[12:],
                "future_observed_values": np.ones(3, np.float32),
            }
            for i, row in enumerate(series)
        ]
        return DataLoader(Items(items), batch_size=5, collate_fn=batchify)

    return Project(module, loader, 10.0)


def forecasting() -> Project:
    """Nested batches, ``(dict, (target, None))``; torchmetrics for a loss; steps that log and remember outputs."""
    import pandas as pd
    from pytorch_forecasting import NBeats, TimeSeriesDataSet

    def dataset(task: int) -> Any:
        values = normal(task, 3, 20).numpy()
        frame = pd.DataFrame(
            [(group, t, float(values[group, t])) for group in range(3) for t in range(20)],
            columns=["group", "time", "value"],
        )
        return TimeSeriesDataSet(
            frame,
            time_idx="time",
            target="value",
            group_ids=["group"],
            time_varying_unknown_reals=["value"],
            max_encoder_length=8,
            min_encoder_length=8,
            max_prediction_length=3,
            min_prediction_length=3,
        )

    return Project(
        lambda: NBeats.from_dataset(dataset(0), widths=[8, 16], log_interval=-1, learning_rate=1e-2),
        lambda task: dataset(task).to_dataloader(train=False, batch_size=8, num_workers=0),
        10.0,
    )


def chemprop() -> Project:
    """Batches of graphs that cannot be split, whose ``.to`` works in place."""
    from chemprop.data import MoleculeDatapoint, MoleculeDataset, collate_batch
    from chemprop.models import MPNN
    from chemprop.nn import BondMessagePassing, MeanAggregation, RegressionFFN

    molecules = ["CCO", "CCN", "CCCC", "c1ccccc1", "CC(=O)O", "CCCl", "CNC", "COC", "CCS", "OCCO"]

    def loader(task: int) -> DataLoader:
        points = [MoleculeDatapoint.from_smi(smiles, normal(i, 1).numpy() + task) for i, smiles in enumerate(molecules)]
        return DataLoader(MoleculeDataset(points), batch_size=5, collate_fn=collate_batch)

    return Project(
        lambda: MPNN(BondMessagePassing(d_h=16, depth=2), MeanAggregation(), RegressionFFN(input_dim=16, hidden_dim=8)),
        loader,
        10.0,
        replay=r"expected one entry per sample in every leaf of the batch.*HINT",
    )


def anomalib() -> Project:
    """Dataclasses with lists of paths; a GAN: manual optimization with two optimizers, nothing returned as loss."""
    from anomalib.data.dataclasses.torch import ImageBatch, ImageItem
    from anomalib.models.image.ganomaly import Ganomaly
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Resize

    def module() -> Any:
        made = Ganomaly(
            n_features=4,
            latent_vec_size=8,
            lr=2e-3,
            pre_processor=PreProcessor(Resize((32, 32))),
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )
        nn.init.normal_(made.model.generator.encoder1.input_layers[0].weight, std=0.05)
        return made

    def loader(task: int) -> DataLoader:
        images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(task)) * (1 - 0.5 * task)
        items = [ImageItem(image=image, image_path=f"task{task}/{i}.png") for i, image in enumerate(images)]
        return DataLoader(Items(items), batch_size=4, collate_fn=ImageBatch.collate)

    return Project(module, loader, 100.0)


PROJECTS = (boring, manual_boring, transformer, ts3l, gluonts, forecasting, chemprop, anomalib)
NEEDS = {"ts3l": "ts3l", "gluonts": "gluonts", "forecasting": "pytorch_forecasting", "chemprop": "chemprop"} | {
    "anomalib": "anomalib"
}
