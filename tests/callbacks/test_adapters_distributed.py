"""Two processes with adapters hold the same weights, and those of one process with the same batches."""

from pathlib import Path

import pytest
import torch

from tests.callbacks.distributed_examples import in_two_processes

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lightning_cl import Adapters
from lightning_cl.files import load_state
from lightning_cl.finetuning import adapter_state
from tests.callbacks.test_adapters_distributed import learner, loader

if __name__ == "__main__":
    folder, kind = sys.argv[1], open(sys.argv[1] + "/kind").read()
    module = learner()
    for task in range(2):
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
            callbacks=[Adapters(kind, export=folder + "/a.pt", save="trained")], enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
        )
        trainer.fit(module, loader(trainer))
        trainer.save_checkpoint(folder + "/last.ckpt", weights_only=False)
    torch.save({k: v.clone() for k, v in module.state_dict().items()}, f"{folder}/rank{trainer.global_rank}.pt")
"""


def learner() -> torch.nn.Module:
    from tests.callbacks.freezing_examples import Net

    module = Net()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module


class Half:
    """Every other sample of batches of twelve, for one of two processes; all of them for one."""

    def __init__(self, trainer: object = None) -> None:
        self.trainer = trainer

    def __iter__(self):  # type: ignore[no-untyped-def]
        from lightning_cl.streams import TaskLoader
        from tests.callbacks.freezing_examples import images

        for x, y in TaskLoader(images(), 12):
            rank = self.trainer.global_rank if self.trainer is not None else None  # type: ignore[attr-defined]
            yield (x, y) if rank is None else (x[rank::2], y[rank::2])


def loader(trainer: object = None) -> torch.utils.data.DataLoader:
    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(Half(trainer))

    return torch.utils.data.DataLoader(Batches(), batch_size=None)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_both_ranks_agree_with_one_process(kind: str, tmp_path: Path):
    pytest.importorskip("peft")
    from lightning.pytorch import Trainer

    from lightning_cl import Adapters
    from lightning_cl.finetuning import adapter_state, load_adapters

    (tmp_path / "kind").write_text(kind)
    one, two = in_two_processes(SCRIPT, tmp_path)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) == 0.0
    module = learner()
    for _ in range(2):
        trainer = Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, callbacks=[Adapters(kind)],
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader())
    alone, start = module.state_dict(), learner().state_dict()
    assert max(float((one[name] - alone[name]).abs().max()) for name in one) < 1e-6
    assert all(torch.equal(one[n], start[n.replace(".base_layer", "")]) for n in one if n not in adapter_state(module))
    for file in ("a.pt", "last.ckpt"):
        again = load_adapters(learner(), tmp_path / file).state_dict()
        assert all(torch.equal(again[name], value) for name, value in one.items())
