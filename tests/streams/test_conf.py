import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_cl._conf import register_resolvers
from lightning_cl.errors import InputError
from lightning_cl.streams import Stream
from tests.streams.test_datasets import needs_mnist

FOLDER = Path(__file__).parents[2] / "conf" / "stream"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OWN = ("split_digits", "image_folder", "text_files", "custom")  # nothing to download
ROOT = {
    "data_dir": "no-such-folder",
    "download": False,
    "seed": 3,
    "class_order_seed": None,
    "validation_fraction": 0.1,
}


def load(name: str, tmp_path: Path, *overrides: str, **root) -> Stream:
    register_resolvers()
    (tmp_path / "root.yaml").write_text(
        f"defaults: [{{stream: {name}}}, _self_]\nhydra: {{searchpath: ['file://{FOLDER.parent}']}}\n"
        + OmegaConf.to_yaml({**ROOT, **root})
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = compose("root", list(overrides))
    assert config.stream.name == name
    return instantiate(config.stream, _convert_="all")


def test_all_presets_are_there():
    assert set(NAMES) >= {
        "split_digits", "split_mnist", "split_fashion_mnist", "permuted_mnist", "rotated_mnist", "split_cifar10",
        "split_cifar100", "corrupted_mnist", "image_folder", "custom",
    }  # fmt: skip


def test_split_digits(tmp_path):
    stream = load("split_digits", tmp_path)
    assert (len(stream), stream.scenario, stream.input_shape) == (5, "class_incremental", (1, 8, 8))
    assert all(task.validation is not None and task.seed == 3 for task in stream)
    for scenario in ("task_incremental", "domain_incremental", "data_incremental", "online"):
        assert load("split_digits", tmp_path, f"stream.scenario={scenario}").scenario == scenario
    order = load("split_digits", tmp_path, class_order_seed=1).class_names
    assert order != stream.class_names


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN])
def test_presets_look_for_their_data(name, tmp_path):
    with pytest.raises(Exception, match=r"data_dir='no-such-folder'") as caught:
        load(name, tmp_path)
    assert isinstance(caught.value, InputError) or isinstance(caught.value.__cause__, InputError)


@pytest.mark.parametrize(
    ("name", "message"), [("image_folder", "path=None"), ("text_files", "path=None"), ("custom", r"train=\{\}")]
)
def test_presets_for_your_own_data_ask_for_them(name, message, tmp_path):
    with pytest.raises(Exception, match=message):
        load(name, tmp_path)


def test_custom_by_target(tmp_path):
    target = "+stream.dataset.train._target_=tests.streams.helpers.NoisyItems"
    stream = load("custom", tmp_path, target, "+stream.dataset.train.n=60", "stream.n_tasks=3")
    assert sum(len(task.train) + len(task.validation) + len(task.test) for task in stream) == 60


@needs_mnist
@pytest.mark.parametrize(
    ("name", "tasks", "classes"),
    [("split_mnist", 5, 2), ("permuted_mnist", 10, 10), ("rotated_mnist", 10, 10), ("corrupted_mnist", 7, 10)],
)
def test_presets_on_real_mnist(name, tasks, classes, tmp_path):
    stream = load(name, tmp_path, data_dir=os.environ["LIGHTNING_CL_DATA"])
    assert [len(task.classes) for task in stream] == [classes] * tasks
    assert stream.input_shape == (1, 28, 28)
    first, last = (task.test.batch(torch.arange(5))[0] for task in (stream[0], stream[-1]))
    assert not torch.equal(first, last)
    if tasks != 5:
        heads = load(name, tmp_path, "stream.scenario=task_incremental", data_dir=os.environ["LIGHTNING_CL_DATA"])
        assert len(heads.class_names) == tasks * classes
        assert len(load(name, tmp_path, "stream.n_tasks=3", data_dir=os.environ["LIGHTNING_CL_DATA"])) == 3
