"""Every YAML passes the check of kinds that a run begins with."""

import pytest
from omegaconf import OmegaConf

from lightning_cl._sections import check_config
from lightning_cl.app import SETTINGS
from tests.conf.test_configs import composed, options

GROUPS = ["stream", "method", "model", "optimizer", "scheduler", "experiment"]
CASES = [f"{group}={option}" for group in GROUPS for option in options(group)] + ["logger=[csv,tensorboard]"]


@pytest.mark.parametrize("choice", CASES)
def test_kinds(choice: str):
    if choice == "model=custom":
        return  # names nothing yet
    plain = OmegaConf.to_container(composed(choice), resolve=True)
    assert isinstance(plain, dict)
    check_config({str(key): value for key, value in plain.items()}, SETTINGS)
