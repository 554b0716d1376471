"""``freeze="auto"``: phases found at the start of a fit, and kept for its resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import FreezingSchedule, depth_groups
from lightning_cl.errors import InputError
from lightning_cl.finetuning import auto_phases
from lightning_cl.streams import TaskLoader, TensorData
from tests.callbacks.distributed_examples import in_two_processes
from tests.resume.helpers import differences


class Net(LightningModule):
    """A stem, a body, a head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU())
            self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.2))
            self.head = nn.Linear(6, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.head(self.body(self.stem(batch[0]))), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader() -> TaskLoader:
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    return TaskLoader(TensorData(x, (x[:, 0] * x[:, 1] > 0).long()), 6, shuffle=True)


def fit(*callbacks: Any, resume: Path | None = None, epochs: int = 3, **options: Any) -> dict[str, Any]:
    module, schedule = Net(), FreezingSchedule("auto", recipe_options=options)
    torch.manual_seed(7)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[schedule, *callbacks], enable_checkpointing=bool(callbacks),
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=resume, weights_only=True if resume else None)
    optimizer = trainer.optimizers[0].state_dict()
    return {"weights": dict(module.state_dict()), "schedule": schedule.state_dict(), "optimizer": optimizer}


def test_the_phases_are_those_of_the_choice_and_it_says_why(capfd: pytest.CaptureFixture[str]):
    found = fit()
    phases, explanation = auto_phases(Net(), loader())
    assert found["schedule"]["found"] == phases
    assert explanation in capfd.readouterr().out
    chosen = {name for phase in phases for name in phase["thaw"]}
    before = dict(Net().state_dict())
    for group in depth_groups(Net()):
        # a bias before a BatchNorm has no gradient
        for name in [name for name in group.parameters if name.endswith("weight")]:
            assert torch.equal(found["weights"][name], before[name]) == (group.name not in chosen), name


def test_options_are_those_of_the_choice():
    found = fit(threshold=1.0, head="as_is", epochs=1)
    assert found["schedule"]["found"] == auto_phases(Net(), loader(), threshold=1.0, head="as_is")[0]
    assert [len(phase["thaw"]) for phase in found["schedule"]["found"]] == [1]


def test_resumed_equals_uninterrupted_and_does_not_choose_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # its draws are not in Lightning's checkpoints
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    saver = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    whole = fit(saver, head_epochs=2, threshold=0.1)
    assert [phase.get("epoch") for phase in whole["schedule"]["found"]] == [None, 2]
    monkeypatch.setattr("lightning_cl.callbacks._freezing_auto.auto_phases", None)
    for epoch in (0, 1):
        again = fit(resume=tmp_path / f"epoch={epoch}.ckpt", head_epochs=2, threshold=0.1)
        assert differences(again, whole) == []


def test_what_it_refuses():
    with pytest.raises(InputError, match="freeze='auto' with every; expected head, threshold"):
        FreezingSchedule("auto", recipe_options={"every": 1})
    with pytest.raises(InputError, match="one of freeze, phases and recipe"):
        FreezingSchedule("auto", recipe="lp_ft")


SCRIPT = """
import sys, pathlib, torch
from lightning.pytorch import Trainer
from lightning_cl import FreezingSchedule
from lightning_cl.streams import TaskLoader, TensorData
from tests.callbacks.test_freezing_auto import Net

module, schedule = Net(), FreezingSchedule("auto", recipe_options={"threshold": 0.6})
x = torch.randn(48, 3, generator=torch.Generator().manual_seed(1))
loader = TaskLoader(TensorData(x, (x[:, 0] * x[:, 1] > 0).long()), 6, shuffle=True)
quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, use_distributed_sampler=False,
                  callbacks=[schedule], **quiet)
trainer.fit(module, loader)
found = {"found": schedule.state_dict()["found"], "weights": dict(module.state_dict())}
torch.save(found, pathlib.Path(sys.argv[1]) / f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.long
def test_processes_with_other_samples_choose_alike(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    assert one["found"] == two["found"] != []
    ours = {name: value for name, value in one["weights"].items() if "running" not in name}
    assert all(torch.equal(value, two["weights"][name]) for name, value in ours.items())
