"""Every method YAML trains, changes what is learnt, and says whether it has to be told where a task ends.

A new YAML in conf/method has to be put into ``NEEDS_BOUNDARY`` or ``BY_THE_STEP``.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from lightning_cl import FineTuningModule, app
from tests.conf.test_configs import composed, options

NEEDS_BOUNDARY = {
    *("ewc", "online_ewc", "kfac_ewc", "si", "mas", "rwalk", "l2"),
    *("lwf", "dgr", "er", "a_gem", "gem", "icarl", "bic", "wa", "lucir", "podnet", "eeil", "balanced_fine_tuning"),
    *("gdumb", "uniform", "shrink_and_perturb", "wise_ft"),
}
BY_THE_STEP = {
    *("naive", "cumulative", "from_scratch", "joint", "keep", "random_weights"),
    "auto_freeze",
    *("linear_probe", "lp_ft", "gradual_unfreeze", "surgical_first", "last_k"),
    *("l2sp", "ema", "freezing", "lora", "ia3", "der", "derpp", "er_ace"),
}

#: what a method that is nothing alone is combined with, and compared to; naive fine-tuning for all others
BESIDE = {"balanced_fine_tuning": ["er"]}
#: a tenth of so little is no step at all
SHORTER = {"gdumb": ["callbacks.gdumb.max_epochs=2"], "uniform": ["budget=null"]}
#: these train all of a model with so few layers
DEEPER = {"last_k": ["model.backbone.hidden=[16,16]"], "surgical_first": ["model.backbone.hidden=[16,16,16]"]}
SHORT = (
    *("batch_size=16", "limit_tasks=2", "trainer.max_epochs=1", "+trainer.limit_train_batches=8"),
    *("model.backbone.hidden=[16]", "accelerator=cpu", "progress_bar=false", "+trainer.enable_model_summary=false"),
)
Learnt = tuple[dict[str, Any], FineTuningModule]


def built(*overrides: str) -> list[Any]:
    return [instantiate(section, _convert_="all") for section in composed(*overrides).callbacks.values()]


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``learn(methods, as_=others)``: results and the reloaded module of the others with the model of the methods."""
    known: dict[str, Learnt] = {}

    def call(methods: list[str], as_: list[str] | None = None) -> Learnt:
        own = [override for method in as_ or methods for override in SHORTER.get(method, [])]
        config = composed(f"method=[{','.join(as_ or methods)}]", *SHORT, *own)
        layers = [override for method in methods for override in DEEPER.get(method, [])]
        config.model = composed(f"method=[{','.join(methods)}]", *SHORT, *layers).model
        # naive is trained twice: what differs from it must not do so by chance
        key = f"{methods if as_ is None else ('as', as_)} {config.model}"
        if key not in known:
            folder = tmp_path_factory.mktemp("run")
            results = app.run_config(config, folder, "+".join(as_ or methods), show=False)
            known[key] = results, reloaded(folder)
        return known[key]

    return call


def reloaded(folder: Path) -> FineTuningModule:
    last = json.loads((folder / "sequence.json").read_text())["checkpoint"]
    file = folder / "checkpoints" / f"{last}.model.ckpt"
    return FineTuningModule.load_from_checkpoint(file, map_location="cpu", weights_only=True).eval()


def differ(one: FineTuningModule, two: FineTuningModule) -> bool:
    """Whether any weight does; joint training's head has more rows, and adapters are only in one."""
    theirs = dict(two.named_parameters())
    pairs = [(p, theirs[n]) for n, p in one.named_parameters() if n in theirs and p.shape == theirs[n].shape]
    return any(not torch.equal(a, b) for a, b in pairs)


def test_every_method_says_whether_it_needs_boundaries():
    assert set(options("method")) == NEEDS_BOUNDARY | BY_THE_STEP
    assert not NEEDS_BOUNDARY & BY_THE_STEP


@pytest.mark.parametrize("method", options("method"))
def test_needs_boundary(method: str):
    callbacks = built(f"method=[{method}]")
    assert any(getattr(callback, "needs_boundary", False) for callback in callbacks) == (method in NEEDS_BOUNDARY)


@pytest.mark.parametrize(
    ("overrides", "needs"),
    [
        (["method=[er]", "+callbacks.er.fill=step"], False),
        (["method=[er]", "+callbacks.er.fill=step", "+callbacks.er.mode=separate"], True),
        (["method=[a_gem]", "+callbacks.a_gem.fill=step", "+callbacks.a_gem.policy=reservoir"], False),
        (["method=[a_gem]", "+callbacks.a_gem.policy=reservoir"], True),
        (["method=[gem]", "+callbacks.gem.fill=step"], True),
        (["method=[der]", "+callbacks.der.fill=consolidate"], True),
        (["method=[derpp]", "+callbacks.derpp.fill=consolidate"], True),
        (["method=[er_ace]", "+callbacks.er_ace.fill=consolidate"], True),
    ],
)
def test_needs_boundary_depends_on_the_fill(overrides: list[str], needs: bool):
    (callback,) = built(*overrides)
    assert callback.needs_boundary == needs


@pytest.mark.parametrize("method", options("method"))
def test_trains_reloads_and_differs_from_naive(method: str, learn: Any):
    beside = BESIDE.get(method, [])
    results, module = learn([*beside, method])
    assert results["status"] == "finished"
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    names = module.predict_step(torch.rand(3, 1, 8, 8))
    assert len(names) == 3
    assert set(names) <= set(module.class_names)
    _, plain = learn([*beside, method], as_=beside or ["naive"])
    # random_weights is naive where there is no source
    assert differ(module, plain) == (method not in ("naive", "random_weights"))


@pytest.mark.parametrize("methods", [["ewc", "er"], ["lwf", "er"], ["derpp", "wa"], ["freezing", "er"]], ids="+".join)
def test_combined_differs_from_each_alone(methods: list[str], learn: Any):
    results, both = learn(methods)
    assert results["status"] == "finished"
    for method in methods:
        assert differ(both, learn([method])[1])


def test_freezing_thaws_within_one_epoch(learn: Any):
    # a task of the online scenario has no second one
    assert differ(learn(["freezing"])[1], learn(["linear_probe"])[1])
