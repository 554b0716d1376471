"""Processes that gloo connects give its threads time before the interpreter ends; others do not wait."""

import atexit
import time
from typing import Any

import pytest
import torch.distributed as dist

from lightning_cl import _compat_exit


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(atexit, "register", lambda *call: calls.append(call))
    _compat_exit.settle_at_exit.cache_clear()
    yield calls
    _compat_exit.settle_at_exit.cache_clear()


def connect(monkeypatch: pytest.MonkeyPatch, processes: int, backend: str) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: processes)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo,cuda:nccl"])
def test_registered_once_among_several_processes(registered: list[Any], monkeypatch: pytest.MonkeyPatch, backend: str):
    connect(monkeypatch, 2, backend)
    _compat_exit.settle_if_connected()
    _compat_exit.settle_if_connected()
    assert registered == [(time.sleep, _compat_exit.SECONDS)]


@pytest.mark.parametrize(("processes", "backend"), [(1, "gloo"), (2, "nccl")])
def test_nothing_waits_elsewhere(registered: list[Any], monkeypatch: pytest.MonkeyPatch, processes: int, backend: str):
    _compat_exit.settle_if_connected()
    connect(monkeypatch, processes, backend)
    _compat_exit.settle_if_connected()
    assert registered == []
