"""Every YAML composes and builds what it names."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_cl import app
from lightning_cl._conf import DEFAULT_METHOD, conf_dir, method_name, register_resolvers
from lightning_cl.finetuning.batch_parts import split_batch
from tests.text_examples import stream as text_stream

HAS_DATA = "LIGHTNING_CL_DATA" in os.environ
NEEDS_FILES = {"image_folder", "text_files", "custom", *(p.stem for p in conf_dir().glob("stream/*mnist.yaml"))}
NEEDS_FILES |= {p.stem for p in conf_dir().glob("stream/*cifar*.yaml")}


def options(group: str) -> list[str]:
    root = conf_dir() / group
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def composed(*overrides: str, hydra: bool = False) -> DictConfig:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def values(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain


@pytest.fixture(scope="module")
def digits() -> Any:
    return instantiate(composed().stream, _convert_="all")


def test_every_group_is_tested():
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    tested = {"stream", "method", "model", "optimizer", "scheduler", "trainer", "logger", "experiment", "hydra"}
    assert groups - {"__pycache__"} == tested | {"parameter_groups"}


@pytest.mark.parametrize("stream", options("stream"))
def test_stream(stream: str):
    config = composed(f"stream={stream}")
    assert values(config)["stream"]["name"] == stream
    on_disk = {"MNIST": "mnist"}
    present = HAS_DATA and any(
        (Path(os.environ["LIGHTNING_CL_DATA"]) / folder).is_dir() and stream.endswith(f"_{name}")
        for folder, name in on_disk.items()
    )
    if stream not in NEEDS_FILES or (present and "fashion" not in stream):
        assert len(instantiate(config.stream, _convert_="all")) == config.stream.n_tasks


@pytest.mark.parametrize("method", options("method"))
def test_method(method: str):
    config = composed(f"method={method}")
    built = {name: instantiate(section, _convert_="all") for name, section in config.callbacks.items()}
    assert (method in built) or method in (
        *("naive", "joint", "cumulative", "from_scratch", "keep", "online_ewc", "random_weights"),
    )
    assert method_name([f"method={method}"]) == method


def test_methods_compose():
    config = composed("method=[ewc,er]")
    kinds = {name: type(instantiate(section, _convert_="all")).__name__ for name, section in config.callbacks.items()}
    assert kinds == {"ewc": "EWC", "er": "Replay"}
    assert method_name(["method=[ewc,er]"]) == "ewc+er"
    assert composed().callbacks == composed(f"method={DEFAULT_METHOD}").callbacks  # what method_name takes for granted


@pytest.mark.parametrize("model", options("model"))
def test_model(model: str, digits: Any, tmp_path: Path):
    overrides = [f"model={model}"]
    if model == "custom":
        overrides += ["model.backbone._target_=lightning_cl.finetuning.MLP", "+model.backbone._partial_=true"]
    if model == "hf_text":
        from tests.text_examples import backbone

        backbone().network.save_pretrained(tmp_path)
        overrides.append(f"model.backbone.name_or_path={tmp_path}")
    stream = text_stream() if model.startswith("hf_text") else digits
    module = app.build_module(composed(*overrides), stream)
    x, _, _ = split_batch(stream[0].test.batch(torch.arange(2)))
    features = module.backbone(x)
    assert features.shape == (2, module.head.in_features)
    assert features.isfinite().all()


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("scheduler", options("scheduler"))
def test_optimizer_and_scheduler(optimizer: str, scheduler: str, digits: Any):
    module = app.build_module(composed(f"optimizer={optimizer}", f"scheduler={scheduler}"), digits)
    made = module.configure_optimizers()
    if scheduler == "none":
        assert type(made).__name__.lower() == optimizer
    else:
        assert type(made["optimizer"]).__name__.lower() == optimizer
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()


@pytest.mark.parametrize("choice", options("parameter_groups"))
def test_parameter_groups(choice: str, digits: Any):
    overrides = ["optimizer=adamw", "+optimizer.weight_decay=0.1", "model.backbone.hidden=[8,8]"]
    module = app.build_module(composed(f"parameter_groups={choice}", *overrides), digits)
    expected = {"none": [(1.0, 0.1)], "no_decay": [(1.0, 0.1), (1.0, 0.0)]}
    layers = [(0.75**i, decay) for i in (2, 1, 0) for decay in (0.1, 0.0)]
    groups = module.configure_optimizers().param_groups
    found = [(pytest.approx(group["lr"] / 0.001), group["weight_decay"]) for group in groups]
    assert found == expected.get(choice, layers)


def test_warmup_cosine_is_stepped_with_the_optimizer(digits: Any):
    module = app.build_module(composed("scheduler=warmup_cosine", "scheduler.warmup_fraction=0.5"), digits)
    assert module.configure_optimizers()["lr_scheduler"]["interval"] == "step"
    assert module.scheduler_factory.keywords == {"warmup_fraction": 0.5}


@pytest.mark.parametrize("trainer", options("trainer"))
def test_trainer(trainer: str):
    make = instantiate(composed(f"trainer={trainer}").trainer, _convert_="all")
    assert make(logger=False, enable_checkpointing=False).max_epochs == 10


@pytest.mark.parametrize("stream", ["online_mnist", "blurry_mnist", "gradual_mnist"])
def test_streams_of_one_pass(stream: str):
    config = composed(f"stream={stream}", "method=[er,a_gem]")
    assert instantiate(config.trainer, _convert_="all")(logger=False, enable_checkpointing=False).max_epochs == 1
    assert (config.batch_size, config.updates_per_batch) == (10, 1)
    assert composed(f"stream={stream}", "trainer.max_epochs=3").trainer.max_epochs == 3
    built = {name: instantiate(section, _convert_="all") for name, section in config.callbacks.items()}
    assert not built["er"].needs_boundary
    assert built["a_gem"].needs_boundary == (stream == "online_mnist")


def test_a_stream_without_a_scenario_has_epochs_too():
    assert composed("~stream.scenario", "model.head=growing").trainer.max_epochs == 10


@pytest.mark.parametrize("logger", options("logger"))
def test_logger(logger: str, tmp_path: Path):
    make = instantiate(composed(f"logger={logger}").loggers[logger], _convert_="all")
    assert Path(make(save_dir=str(tmp_path)).log_dir) == tmp_path / logger
    assert set(composed("logger=[csv,tensorboard]").loggers) == {"csv", "tensorboard"}


@pytest.mark.parametrize("method", [*options("method"), "[ewc,er]", "[freezing,er]"])
@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_with_every_method(experiment: str, method: str):
    config = values(composed(f"experiment={experiment}", f"method={method}", "data_dir=x", "seed=1"))
    assert (config["stream"]["dataset"].get("data_dir", "x"), config["seed"]) == ("x", 1)
    for section in config["callbacks"].values():
        if "_target_" in section:
            assert instantiate(section) is not None


@pytest.mark.parametrize("name", ["job_logging", "hydra_logging"])
def test_logging(name: str, tmp_path: Path):
    config = composed(hydra=True)
    with open_dict(config):
        config.hydra.runtime.output_dir = str(tmp_path)
    import logging.config

    plain = OmegaConf.to_container(config.hydra[name], resolve=True)
    assert isinstance(plain, dict)
    assert logging.config.DictConfigurator(plain).config["root"]["handlers"][0] == "terminal"
