import torch

from lightning_cl.streams import TaskDataModule, TaskLoader
from lightning_cl.streams.scenarios import class_incremental
from tests.streams.helpers import JitterEach, classes


def test_each_loader_serves_its_part():
    stream = class_incremental(classes(), 5, validation_fraction=0.25, augment=JitterEach())
    module = TaskDataModule(stream[1], batch_size=5, eval_batch_size=7, seed=3, drop_last=True, num_workers=1)
    train, validation, test = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    assert isinstance(train, TaskLoader)
    assert train.dataset is stream[1].train
    assert (train.shuffle, train.augment, train.drop_last, train.batch_size) == (True, True, True, 5)
    assert (train.seed, train.task_id, train.num_workers) == (3, 1, 1)
    for loader, data in ((validation, stream[1].validation), (test, stream[1].test)):
        assert loader.dataset is data
        assert (loader.shuffle, loader.augment, loader.drop_last, loader.batch_size) == (False, False, False, 7)


def test_the_importance_loader_serves_the_training_data_as_they_are():
    task = class_incremental(classes(), 5, augment=JitterEach())[0]
    loader = TaskDataModule(task, batch_size=5, drop_last=True).importance_dataloader()
    x = torch.cat([batch[0] for batch in loader])
    assert torch.equal(x, task.train.batch(torch.arange(len(task.train)))[0])


def test_no_validation_data_no_loader():
    assert TaskDataModule(class_incremental(classes(), 5)[0]).val_dataloader() == []
