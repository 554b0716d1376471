"""What holds for every test: one thread a process, and an environment that no other test has changed."""

import logging
import os
from collections.abc import Iterator

import pytest

# before torch is imported: two test processes share two cores, and sums keep their order
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """A handler that an import in a test makes holds that test's captured stderr, which is closed after it."""
    before = {name: list(logging.getLogger(name).handlers) for name in LOGGERS}
    yield
    for name, handlers in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler for handler in logger.handlers if handler in handlers]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Lightning leaves ranks and ports in the environment, with which a test's own processes would wait for others."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
