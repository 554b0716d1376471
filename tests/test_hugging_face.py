"""What is said where something on the hub cannot be had."""

import socket
from typing import Any

import pytest

from lightning_cl._hugging_face import fetching, load
from lightning_cl.errors import InputError

hub = pytest.importorskip("huggingface_hub")
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
LONG = "We could not connect to the host to load the files, check your connection and try again later " * 4


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether the hub's host is found; nothing is connected to."""
    there = {"hub": True}

    def look(*args: Any, **kwargs: Any) -> Any:
        if not there["hub"]:
            raise OSError("no name service")
        return [()]

    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", look)
    return there


def said(error: Exception, **options: Any) -> str:
    with pytest.raises(InputError) as caught, fetching("weights='A'", "a file", **options):
        raise error
    return str(caught.value)


MISSING = "weights='A', neither a path nor in the cache; expected a network connection to download it. HINT: a file"


def test_without_a_network_only_the_cache_is_looked_at(resolves: dict[str, bool]):
    resolves["hub"] = False
    with fetching("weights='A'", "a file"):
        assert hub.constants.HF_HUB_OFFLINE
    assert not hub.constants.HF_HUB_OFFLINE
    assert said(OSError(LONG)) == MISSING
    assert not hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("proxy", [False, True])
def test_an_offline_switch_counts_behind_a_proxy_too(
    proxy: bool, resolves: dict[str, bool], monkeypatch: pytest.MonkeyPatch
):
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", "http://localhost:1")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert said(OSError(LONG)) == MISSING


def test_a_hub_that_does_not_answer_is_no_network(resolves: dict[str, bool]):
    error = OSError(LONG)
    error.__cause__ = hub.errors.LocalEntryNotFoundError("Cannot find the requested files")
    assert said(error) == MISSING


def test_what_the_hub_says_is_cut_between_words(resolves: dict[str, bool]):
    text = said(OSError(LONG))
    assert text.startswith("weights='A' (OSError: We could not")
    kept, _, rest = text.partition(" ...)")
    assert rest == "; expected a model on the hub. HINT: a file"
    assert LONG.startswith(f"{kept.partition('OSError: ')[2]} ")


def test_a_folder_is_not_looked_for_on_the_hub(resolves: dict[str, bool]):
    resolves["hub"] = False
    assert "(OSError: no file); expected a folder that save_pretrained has written" in said(
        OSError("no file"), folder=True
    )


@pytest.mark.parametrize("error", [KeyError, ImportError])
def test_other_errors_pass(error: type[Exception], resolves: dict[str, bool]):
    with pytest.raises(error), fetching("weights='A'", "a file"):
        raise error("x")


def test_load_looks_into_the_cache_first(resolves: dict[str, bool]):
    pytest.importorskip("transformers")
    asked: list[bool] = []

    def from_pretrained(name: str, local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        if local_files_only or not resolves["hub"]:
            raise OSError(LONG)
        return name

    assert load(from_pretrained, "a/b", "model", "give a folder") == "a/b"
    assert asked == [True, False]
    resolves["hub"] = False
    with pytest.raises(InputError, match=r"^model 'a/b', neither a path nor in the cache; .* HINT: give a folder"):
        load(from_pretrained, "a/b", "model", "give a folder")
