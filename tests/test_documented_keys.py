"""Every key of a callback that a document, a config's comment or a message names is one that its method has."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lightning_cl._conf import conf_dir, register_resolvers
from lightning_cl._overrides import with_plus

ROOT = Path(__file__).parents[1]
KEY = re.compile(r"\+*callbacks\.(\w+)\.[\w.]+(?==)")


def named() -> dict[str, dict[str, str]]:
    """Method -> key as it is written -> the file that names it."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    files = [*ROOT.glob("docs/*"), ROOT / "README.md", *conf_dir().rglob("*.yaml"), *ROOT.glob("lightning_cl/**/*.py")]
    for file in sorted(files):
        for match in KEY.finditer(file.read_text()):
            found[match[1]].setdefault(match[0], str(file.relative_to(ROOT)))
    return found


NAMED = named()


def test_some_are_found():
    files = {file for keys in NAMED.values() for file in keys.values()}
    assert {"docs/memory.md", "docs/privacy.md", "conf/method/uniform.yaml"} <= files
    assert "lightning_cl/callbacks/dgr.py" in files


@pytest.mark.parametrize("method", sorted(NAMED))
def test_a_key_that_is_named_composes_with_its_method(method: str):
    register_resolvers()
    written = [f"{key}=null" for key in NAMED[method]]
    plain = with_plus([f"method={method}", *(text for text in written if not text.startswith("+"))])
    overrides = {*plain, *(text for text in written if text.startswith("+"))}
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert compose("config", sorted(overrides)).callbacks[method] is not None, NAMED[method]
