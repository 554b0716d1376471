"""Pages from templates: everything escaped, everything inside the page."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_atomic
from .style import data_uri, png

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

_TEMPLATES = (
    *("base.html.j2", "report.html.j2", "comparison.html.j2"),
    *("importance.html.j2", "importance_page.html.j2", "model_ranking.html.j2"),
)


@cache
def _environment() -> "Environment":
    from jinja2 import DictLoader, Environment, StrictUndefined

    # read through importlib.resources, so that the package works from a zip too
    sources = {name: files(__package__).joinpath(name).read_text(encoding="utf-8") for name in _TEMPLATES}
    return Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render(template: str, **values: Any) -> str:
    """The page of a template; values are escaped."""
    return _environment().get_template(template).render(**values)


def save_figures(figures: Mapping[str, "Figure"], folder: Path | None) -> dict[str, str]:
    """Write each figure as ``folder/NAME.png``, if there is a folder, and return their data URIs by name."""
    uris = {}
    for name, figure in figures.items():
        image = png(figure)
        if folder is not None:
            write_atomic(folder / f"{name}.png", image)
        uris[name] = data_uri(image)
    return uris
