"""``lightning-cl select``"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl._parser import Parser
from lightning_cl.errors import InputError

DESCRIPTION = """\
Which pretrained model suits this stream? Extracts each candidate's features of the stream's training data, and ranks
the candidates by LogME, a linear probe and nearest neighbours, beside time and size. Writes selection.json,
selection.png and selection.html. Features are kept, so that a stopped command goes on."""
EPILOG = """\
candidates: torchvision:NAME and timm:NAME, with weights by name or @FILE; hf:FOLDER or hf:OWNER/NAME; a config under
conf/model. NAME:random is the same network untrained. Overrides of a model stand behind its name.
  lightning-cl select candidates=[mlp,torchvision:resnet18:random]
  lightning-cl select stream=image_folder stream.dataset.path=DIR stream.dataset.size=128 --with-random
               candidates=[torchvision:resnet18,timm:tf_efficientnet_lite0@FILE.pt,'mlp model.backbone.hidden=[100]']"""


def main(argv: Sequence[str]) -> int:
    """Run the subcommand.

    Args:
        argv: Arguments after ``select``.

    Returns:
        0.

    Raises:
        InputError: For bad input, and if no candidate works.
    """
    parser = _parser()
    if list(argv) == ["help"]:
        argv = ["--help"]
    given = parser.parse_intermixed_args(list(argv))
    candidates, overrides = _candidates(given.overrides)
    from lightning_cl.selection import SelectRequest, select_models

    options = {k: v for k, v in vars(given).items() if k not in ("overrides", "out", "no_cache", "max_samples")}
    folder = given.out or Path("runs") / "select" / _stream_name(overrides)
    request = SelectRequest(
        candidates,
        overrides,
        max_samples=given.max_samples or None,
        cache=None if given.no_cache else folder / "features",
        **options,
    )
    found = select_models(request, lambda name: print(f"candidate: {name}", file=sys.stderr))
    _show(found, folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lightning-cl select",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", metavar="override", nargs="*", help="candidates=[...]; of the app: stream=...")
    parser.add_argument("--task", type=int, metavar="N", help="training data of this task (default: of all tasks)")
    parser.add_argument("--max-samples", type=int, default=5000, metavar="N", help="class-balanced subset; 0 for all")
    parser.add_argument("--k", type=int, default=20, metavar="K", help="nearest neighbours (default: 20)")
    parser.add_argument("--folds", type=int, default=3, metavar="N", help="of the probe, without validation data")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="of the extraction (default: 64)")
    parser.add_argument("--with-random", action="store_true", help="each pretrained candidate untrained too")
    parser.add_argument("--no-cache", action="store_true", help="keep no features")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/select/STREAM")
    return parser


def _candidates(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The list of candidates and the other overrides."""
    own = [text for text in arguments if text.startswith("candidates=")]
    others = [text for text in arguments if not text.startswith("candidates=")]
    if not own:
        hint = "candidates=[torchvision:resnet18,timm:resnet18,mlp]"
        raise InputError("no candidates=[...]", "the models to be compared", hint)
    if wrong := [text for text in others if "=" not in text]:
        raise InputError(repr(wrong[0]), "key=value, or candidates=[...]", "lightning-cl select --help says more")
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(own[-1]).value()
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(text is not None and not isinstance(text, list | dict) for text in listed):
        raise InputError(
            own[-1], "a list of names", "quote what has spaces: candidates=['mlp model.backbone.hidden=[9]']"
        )
    return [str(text) for text in listed], others


def _stream_name(overrides: Sequence[str]) -> str:
    chosen = [text.partition("=")[2] for text in overrides if text.startswith("stream=")]
    if chosen:
        return re.sub(r"[^\w.-]+", "-", chosen[-1])
    return "split_digits"


def _show(found: dict[str, Any], folder: Path) -> None:
    from lightning_cl.files import write_json
    from lightning_cl.report.model_ranking import ranking_table, write_ranking_page, write_ranking_plot

    ranking_table(found)
    works = [row for row in found["candidates"] if "error" not in row]
    if not works:
        reason = found["candidates"][0]["error"]
        raise InputError(f"no candidate works, the first because: {reason}", "one that does", "see the table's reasons")
    write_json(folder / "selection.json", found)
    print(f"plot: {write_ranking_plot(found, folder / 'selection.png')}")
    print(f"page: {write_ranking_page(found, folder / 'selection.html')}")
    print(f"best by mean rank: {' '.join(works[0]['overrides'])}")
