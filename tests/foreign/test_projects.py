"""EWC and Replay in modules that we did not write, unmodified.

``pip install -r tests/foreign/requirements.txt && pytest -m foreign tests/foreign``
"""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_cl import EWC, Replay
from lightning_cl.errors import InputError
from tests.foreign.projects import NEEDS, PROJECTS, Project

pytestmark = [pytest.mark.foreign, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=PROJECTS, ids=lambda make: make.__name__)
def project(request: pytest.FixtureRequest) -> Project:
    make: Callable[[], Project] = request.param
    if make.__name__ in NEEDS:
        pytest.importorskip(NEEDS[make.__name__])
    return make()


def learn(project: Project, *callbacks: Any, tasks: int = 2, module: Any = None) -> Any:
    """The module after its tasks, each with a Trainer of the project's own Lightning."""
    trainer_class = importlib.import_module(project.root).Trainer
    torch.manual_seed(0)
    module = module or project.module()
    for task in range(tasks):
        torch.manual_seed(task)
        trainer_class(
            accelerator="cpu",
            max_epochs=2,
            limit_val_batches=0,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, project.loader(task))
    return module


def weights(module: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def traces(module: Any) -> dict[str, Any]:
    """All that a pass could leave behind: buffers, sizes of containers, counters, tensors, gradients, flags."""
    found: dict[str, Any] = {name: value.clone() for name, value in module.state_dict().items()}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                found[f"{name}.{key}"] = value.clone()
            elif isinstance(value, list | dict | set | tuple):
                found[f"{name}.{key}"] = torch.tensor(len(value))
            elif isinstance(value, bool | int | float):
                found[f"{name}.{key}"] = torch.tensor(float(value))
    return found | {f"grad of {n}": torch.tensor(p.requires_grad) for n, p in module.named_parameters()}


def test_ewc(project: Project):
    first = learn(project, tasks=1)
    after_naive = torch.get_rng_state()
    ewc = EWC(project.lambda_)
    watched = learn(project, ewc, tasks=1)
    assert torch.equal(torch.get_rng_state(), after_naive)
    expected, got = traces(first), traces(watched)
    assert expected.keys() == got.keys()
    unlike = [name for name in expected if not torch.equal(expected[name], got[name])]
    assert unlike == [], "the passes over the data leave no trace"
    trainable = {name for name, p in watched.named_parameters() if p.requires_grad}
    assert set(ewc.importance) == set(ewc.anchor) == trainable
    assert all(value.isfinite().all() for value in ewc.importance.values())
    assert sum(bool(value.any()) for value in ewc.importance.values()) > len(trainable) / 2

    ewc, naive = EWC(project.lambda_), learn(project)
    module = learn(project, ewc)
    assert ewc.n_tasks == 2
    assert weights(module).isfinite().all()
    assert not torch.equal(weights(module), weights(naive))


def test_replay(project: Project):
    replay = Replay(6, seed=1)
    if project.replay:
        torch.manual_seed(0)
        module = project.module()
        before = weights(module)
        with pytest.raises(InputError, match=project.replay):
            learn(project, replay, module=module)
        assert torch.equal(weights(module), before), "refused before the first step"
        return
    naive, module = learn(project), learn(project, replay)
    assert len(replay.memory) == 6
    assert replay.memory.n_seen == sum(len(project.loader(task).dataset) for task in range(2))
    assert replay.replayed > 0
    assert weights(module).isfinite().all()
    assert not torch.equal(weights(module), weights(naive))
    first, watched = learn(project, tasks=1), learn(project, Replay(6, seed=1), tasks=1)
    expected, got = traces(first), traces(watched)
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
