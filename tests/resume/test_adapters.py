"""A run with adapters, killed in its first or second task, ends as the uninterrupted one, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_cl import EWC, Adapters, FineTuningModule, LwF, Replay, run_sequence
from lightning_cl.files import load_state
from lightning_cl.finetuning import adapter_state, load_adapters, save_adapters
from tests.callbacks.freezing_examples import Net
from tests.resume.helpers import Backbone, Killed, Recorder, contents, differences, module, stream, trainer

pytest.importorskip("peft")

METHODS: dict[str, Any] = {
    "lora": lambda: [Adapters(dropout=0.2)],
    "ia3, trained": lambda: [Adapters("ia3", save="trained")],
    "lora and a norm, trained": lambda: [Adapters(rank=2, save="trained", also_train=r"backbone\.2\.")],
    "lora + ewc": lambda: [EWC(5.0), Adapters()],
    "lora + lwf": lambda: [Adapters(), LwF()],
    "lora + er": lambda: [Adapters(), Replay(12)],
}


class Foreign(Net):
    """Not ours: it cannot know from a checkpoint that it has adapters."""

    def __init__(self) -> None:
        super().__init__(lambda p: torch.optim.Adam(p, lr=0.02))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone[5] = nn.Linear(16, 8)
            self.head = nn.Linear(8, 4)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("test_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), batch_size=len(batch[0]))


MODULES: dict[str, Any] = {"ours": module, "foreign": Foreign}


class Kills(Recorder):
    """In the fit of one task."""

    state_key = "Recorder"

    def __init__(self, task: int, at: tuple[str, int]) -> None:
        super().__init__()
        self.task, self.at = task, at

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.kill_at = self.at if trainer.datamodule.task.id == self.task else None


def run(method: str, folder: Path, recorder: Recorder | None = None, kind: str = "ours") -> Any:
    learner = MODULES[kind]()
    try:
        run_sequence(
            learner, stream(), [*METHODS[method](), recorder or Recorder()], run_dir=folder, trainer=trainer(),
            batch_size=6, progress_bar=False, checkpoint_every_n_steps=2,
        )  # fmt: skip
    except Killed:
        return None
    return learner


@pytest.mark.parametrize(
    ("method", "kind"), [*((m, "ours") for m in METHODS), ("lora", "foreign"), ("ia3, trained", "foreign")]
)
def test_a_killed_run_ends_as_the_uninterrupted_one(method: str, kind: str, tmp_path: Path):
    run(method, tmp_path / "whole", kind=kind)
    expected = contents(tmp_path / "whole")
    for task, at in ((0, ("batch end", 5)), (1, ("batch end", 5)), (1, ("train end", 8))):
        folder = tmp_path / f"{task} {at[0]}"
        assert run(method, folder, Kills(task, at), kind) is None
        assert (folder / "checkpoints" / f"fit-task000{task}-stage0.ckpt").is_file()
        assert run(method, folder, kind=kind) is not None
        assert differences(contents(folder), expected) == []
    if kind == "ours":
        start, end = module().state_dict(), contents(tmp_path / "whole")["model"]["state_dict"]
        frozen = {name: value for name, value in end.items() if ".base_layer." in name}
        assert len(frozen) == 2
        assert all(torch.equal(value, start[name.replace(".base_layer", "")]) for name, value in frozen.items())


@pytest.mark.parametrize("method", ["lora", "ia3, trained"])
def test_the_model_reloads_from_its_file_alone_and_from_its_adapters(method: str, tmp_path: Path):
    learner = run(method, tmp_path / "run").eval()
    x = torch.randn(5, 1, 4, 4)
    file = tmp_path / "run" / "model.ckpt"
    again = FineTuningModule.load_from_checkpoint(file, backbone=Backbone(), weights_only=True).eval()
    assert torch.equal(again(x), learner(x))
    assert again.class_names == learner.class_names
    save_adapters(learner, tmp_path / "a.pt")
    fresh = load_adapters(module(), tmp_path / "a.pt").eval()
    assert torch.equal(fresh(x), learner(x))
    assert fresh.class_names == learner.class_names
    assert adapter_state(fresh).keys() == adapter_state(learner).keys()


def test_the_checkpoint_of_a_killed_fit_holds_what_is_trained(tmp_path: Path):
    run("ia3, trained", tmp_path, Kills(1, ("batch end", 5)))
    state = load_state(tmp_path / "checkpoints" / "fit-task0001-stage0.ckpt")["state_dict"]
    assert set(state) == {"head.weight", "head.bias", "backbone.1.ia3_l.default"}
