"""What tests of the command line share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from lightning_cl import cli

QUICK = ["trainer.max_epochs=1", "reference_methods=[]", "stream.n_tasks=2", "model.backbone.hidden=[16]"]


@dataclass
class Outcome:
    """Exit code and output of one call."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; fails if there is anything else."""
        assert self.code == 2, (self.code, self.err)
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err + self.out
        assert "; expected " in self.err
        assert ". HINT: " in self.err
        return self.err


Call = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """``call(*arguments)`` runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_CL_DATA", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str) -> Outcome:
        GlobalHydra.instance().clear()
        capfd.readouterr()
        code = cli.main(arguments)
        GlobalHydra.instance().clear()
        return Outcome(code, *capfd.readouterr())

    return run


class Labelled(torch.utils.data.Dataset):
    """Ten random samples of each label given."""

    def __init__(self, labels: list[int], classes: int | None = None) -> None:
        self.targets = [label for label in labels for _ in range(10)]
        if classes is not None:
            self.classes = [str(i) for i in range(classes)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3,), float(index)), self.targets[index]
