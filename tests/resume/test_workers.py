"""The number of worker processes may change between the parts of a run, random items and augmentation included."""

from pathlib import Path

import torch
from torch import nn

from lightning_cl import FineTuningModule
from lightning_cl._compat import seeded
from lightning_cl.streams import ItemData, Stream, Task
from tests.resume.helpers import contents, differences, learn, without_times
from tests.streams.helpers import JitterEach, NoisyItems


def tasks() -> Stream:
    data = NoisyItems()
    parts = []
    for number in range(2):
        items = ItemData(data, None, torch.tensor(data.targets), augment=JitterEach(), seed=number)
        parts.append(Task(number, f"task {number}", ("a", "b", "c"), (0, 1, 2), items, None, items, seed=number))
    return Stream("noisy", "data_incremental", parts, ["a", "b", "c"])


def learner() -> FineTuningModule:
    with seeded(0):
        backbone = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
        return FineTuningModule(backbone, input_shape=(3,), class_names=("a", "b", "c"))


def test_workers_make_no_difference(tmp_path: Path):
    options = {"stream": tasks(), "checkpoint_every_n_steps": 1}
    _, whole = learn(tmp_path / "whole", "er", module=learner(), **options)
    learn(tmp_path / "run", "er", module=learner(), num_workers=2, kill_at=("batch end", 3), **options)
    learn(tmp_path / "run", "er", module=learner(), num_workers=0, kill_at=("batch end", 6), **options)
    events, results = learn(tmp_path / "run", "er", module=learner(), num_workers=2, **options)
    assert events[0][2] == 5
    assert without_times(results) == without_times(whole)
    assert differences(contents(tmp_path / "run"), contents(tmp_path / "whole")) == []
