"""A training that was stopped at any step and continued equals one that was not, in a real Trainer."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_cl.streams import Task, TaskDataModule, TensorData
from tests.streams.helpers import JitterEach


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class SaveEveryStep(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *args):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(trainer_arguments, validation, callbacks=(), checkpoint=None):
    with isolate_rng():
        torch.manual_seed(0)
        module = Tiny()
        data = TensorData(torch.randn(18, 4), torch.arange(18) % 3, augment=JitterEach())
        task = Task(0, "task 0", ("a", "b", "c"), (0, 1, 2), data, data if validation else None, data)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **trainer_arguments,
        )
        trainer.fit(module, datamodule=TaskDataModule(task, batch_size=4, seed=5), ckpt_path=checkpoint)
    return module, trainer.global_step


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize(
    "length",
    [
        {"max_epochs": 2},
        {"max_epochs": -1, "max_steps": 8},
        {"max_epochs": -1, "max_steps": 5},
        {"max_epochs": 3, "limit_train_batches": 3},
    ],
)
def test_resumed_weights_equal_uninterrupted_weights(tmp_path, length, validation):
    whole, steps = fit(length, validation, [SaveEveryStep(tmp_path)])
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == steps
    for checkpoint in checkpoints:
        torch.load(checkpoint, weights_only=True)
        resumed, resumed_steps = fit(length, validation, checkpoint=checkpoint)
        assert resumed_steps == steps, checkpoint.name
        assert torch.equal(resumed.layer.weight, whole.layer.weight), checkpoint.name
