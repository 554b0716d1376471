import os

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch):
    """It guards against power cuts, which no test here makes, and takes most of the time on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
