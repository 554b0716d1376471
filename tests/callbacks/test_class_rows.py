"""A classifier whose rows have moved is not pulled to the rows of other classes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl import EWC, InputError, KroneckerEWC, LwF, WiSEFT
from lightning_cl.finetuning import replace_head
from tests.callbacks.penalty_examples import METHODS

ALL = {**METHODS, "ewc": EWC, "kfac_ewc": KroneckerEWC}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        replace_head(self.net, ["cat", "dog"], name="2")

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(net: Net, method: Any) -> None:
    data = TensorDataset(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    Trainer(max_epochs=1, accelerator="cpu", callbacks=[method], enable_model_summary=False, **off).fit(
        net, DataLoader(data, batch_size=4)
    )


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"l2sp"}))  # its head is pulled towards zero
def test_rows_of_other_classes_are_refused(name: str):
    make: Callable[..., Any] = ALL[name]
    for classes in (["ant", "cat", "dog"], ["red", "blue"], ["dog"]):
        net, method = Net(), make(1.0)
        fit(net, method)
        again = make(1.0)
        again.load_state_dict(method.state_dict())
        replace_head(net.net, classes, name="2")
        with pytest.raises(InputError, match=rf"net\.2 with the classes \['{classes[0]}'.*\['cat', 'dog'\].* HINT"):
            fit(net, again)


@pytest.mark.parametrize("name", ALL)
def test_rows_may_be_added_and_a_head_left_out(name: str):
    make: Callable[..., Any] = ALL[name]
    net, method = Net(), make(1.0)
    fit(net, method)
    replace_head(net.net, ["cat", "dog", "owl"], name="2")
    fit(net, method)
    net, method = Net(), make(1.0, exclude=r"^net\.2\.")
    fit(net, method)
    replace_head(net.net, ["red", "blue"], name="2")
    fit(net, method)
    assert method.n_tasks == 2


@pytest.mark.parametrize(
    ("make", "hint"),
    [(LwF, "start with a new LwF"), (lambda: WiSEFT(0.5, anchor="pretrained"), r"fine_tuned='\^net")],
    ids=["LwF", "WiSEFT"],
)
def test_a_teacher_and_pretrained_weights_are_of_their_classes_too(make: Callable[[], Any], hint: str):
    net, method = Net(), make()
    fit(net, method)
    again = make()
    again.load_state_dict(method.state_dict())
    replace_head(net.net, ["ant", "cat", "dog"], name="2")
    for each in (method, again):
        with pytest.raises(InputError, match=rf"net\.2 with the classes \['ant'.*\['cat', 'dog'\].*{hint}"):
            fit(net, each)
    net = Net()
    replace_head(net.net, ["cat", "dog", "owl"], name="2")
    fit(net, again)
    assert again.n_tasks == 2


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"l2sp"}))
def test_a_head_that_shrinks_is_named(name: str):
    net, method = Net(), METHODS[name](1.0)
    net.net[2] = nn.Linear(5, 3)
    fit(net, method)
    net.net[2] = nn.Linear(5, 2)
    with pytest.raises(InputError, match=r"net\.2\.weight of shape \(2, 5\).*\(3, 5\) is kept.*exclude='\^net\.2'"):
        fit(net, method)
