"""A run on texts, killed anywhere, ends as the uninterrupted one, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lightning_cl import DER, EWC, Replay
from lightning_cl.errors import InputError
from lightning_cl.sequence import run_sequence
from tests.resume.helpers import Killed, contents, differences, trainer, without_times
from tests.text_examples import module, source, stream


class Dies(Callback):
    """As a killed process, at the end of a batch of the task that is learnt."""

    def __init__(self, task: int | None = None, step: int = 0) -> None:
        self.task, self.step = task, step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if (trainer.datamodule.task.id, trainer.global_step) == (self.task, self.step):
            raise Killed


METHODS: dict[str, Any] = {
    "er+ewc": lambda: [EWC(10.0), Replay(12, policy="class_balanced")],
    "derpp": lambda: [DER(12, 0.5, 0.5)],
}


def run(folder: Path, name: str, killed: tuple[int, int] | tuple[()] = (), **options: Any) -> Any:
    # dropout, so that global random numbers count
    learner = module(config={"hidden_dropout_prob": 0.2}, seed=1)
    try:
        return run_sequence(
            learner, options.pop("stream", None) or stream(), [*METHODS[name](), Dies(*killed)], run_dir=folder,
            trainer=trainer(), batch_size=10, checkpoint_every_n_steps=2, progress_bar=False, **options,
        )  # fmt: skip
    except Killed:
        return None


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed(name: str, tmp_path: Path):
    whole = run(tmp_path / "whole", name)
    for killed in ((0, 3), (1, 5)):
        folder = tmp_path / str(killed)
        assert run(folder, name, killed) is None
        again = run(folder, name)
        assert differences(contents(folder), contents(tmp_path / "whole")) == []
        # not the size of the files: a string that was read twice is written twice
        both = [{**without_times(results), "bytes_kept": None} for results in (again, whole)]
        assert differences(*both) == []
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / "tokenizer" / file).read_bytes() == (tmp_path / "whole" / "tokenizer" / file).read_bytes()
    assert differences(contents(tmp_path / "whole")["model"], {}) != []


def test_a_run_goes_on_with_the_same_tokens_only(tmp_path: Path):
    assert run(tmp_path, "derpp", (1, 2)) is None
    with pytest.raises(InputError, match="task 0"):
        run(tmp_path, "derpp", stream=stream(data=source(max_length=4)))
