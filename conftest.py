"""What holds for every test: one thread a process, and an environment that no other test has changed."""

import logging
import os
from collections.abc import Iterator

import pytest

# before torch is imported: two test processes share two cores, and sums keep their order
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """A handler made in a test writes to that test's captured output; after it, it would fail in another test."""
    yield
    for logger in (logging.getLogger(), *logging.root.manager.loggerDict.values()):
        for handler in list(getattr(logger, "handlers", [])):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Lightning leaves ranks and ports in the environment, with which a test's own processes would wait for others."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
