from typing import Any

import pytest

from lightning_cl import run_sequence
from lightning_cl.callbacks._progress import TaskProgressBar
from tests.finetuning.examples import FEW_EPOCHS, module, plain_loader, stream, trainer


def test_names_task_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    make: Any = FEW_EPOCHS
    run_sequence(
        module(), stream(), method="er", trainer=lambda **kw: make(**{**kw, "enable_progress_bar": True}), limit_tasks=2
    )
    shown = "".join(capsys.readouterr())
    for task in (1, 2):
        for epoch in (1, 2):
            assert f"task {task}/2 er epoch {epoch}" in shown
    assert "task 3" not in shown


def test_shows_logged_values_without_a_version() -> None:
    bar = TaskProgressBar("task 1/1")
    run = trainer(callbacks=[bar], enable_progress_bar=True, log_every_n_steps=1)
    model = module(class_names=[f"c{i}" for i in range(6)])
    run.fit(model, plain_loader())
    assert "v_num" not in bar.get_metrics(run, model)
    assert "train_loss" in bar.get_metrics(run, model)
