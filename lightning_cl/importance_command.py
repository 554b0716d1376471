"""``lightning-cl importance compute | inspect | merge``"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl._parser import Parser
from lightning_cl.errors import InputError

USAGE = """usage: lightning-cl importance compute OUT [options] [overrides ...]
       lightning-cl importance inspect FILE [--json | --html PAGE] [--plot PNG]
       lightning-cl importance merge FILE FILE ... --out OUT [--how sum|online|average]

How much each parameter matters, computed apart from any training: on a pretrained model, or on a finished run.
A method with a quadratic penalty starts from such a file: lightning-cl method=ewc +callbacks.ewc.importance_path=FILE
  compute   the diagonal Fisher (or MAS) of a config's model on its stream's training data
  inspect   one line per parameter: mean, largest, sum, share of the total, zeros
  merge     several files as one; sum is the exact sum of their penalties
lightning-cl importance COMMAND --help says more.
"""


def main(argv: Sequence[str]) -> int:
    """Run the subcommand.

    Args:
        argv: Arguments after ``importance``.

    Returns:
        0.

    Raises:
        InputError: For bad input.
    """
    commands = {"compute": _compute, "inspect": _inspect, "merge": _merge}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if argv[0] not in commands:
        raise InputError(repr(argv[0]), f"one of {', '.join(commands)}", "lightning-cl importance --help says more")
    commands[argv[0]](list(argv[1:]))
    return 0


def _compute(argv: list[str]) -> None:
    parser = Parser(
        prog="lightning-cl importance compute",
        description="Compute the importance of each parameter of a config's model on its stream's training data "
        "(in order, not augmented), and write it with the weights as anchor.",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to be written")
    parser.add_argument("overrides", metavar="override", nargs="*", help="of the app: stream=..., model=..., data_dir=")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--task", type=int, metavar="N", help="training data of this task (default: of all tasks)")
    which.add_argument("--all-tasks", action="store_true", help="training data of all tasks: the default")
    parser.add_argument("--run", type=Path, metavar="DIR", help="config and weights of a finished run folder")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights: a Lightning checkpoint or model.ckpt")
    parser.add_argument("--method", choices=("fisher", "mas"), default="fisher", help="default: fisher")
    parser.add_argument("--labels", default="exact", metavar="MODE", help="labels of the Fisher (default: exact)")
    parser.add_argument("--n-draws", type=int, default=1, metavar="N", help="labels drawn per sample, for mc")
    parser.add_argument("--n-samples", type=int, metavar="N", help="a seeded subset of the samples (default: all)")
    given = parser.parse_intermixed_args(argv)
    if "=" in given.out.name:
        raise InputError(f"OUT={str(given.out)!r}", "a file name before the overrides", "importance compute OUT ...")
    _refuse_unwritable(given.out)
    from lightning_cl.importance_compute import Request, compute
    from lightning_cl.importance_files import save_importance

    options = {key: value for key, value in vars(given).items() if key not in ("out", "all_tasks")}
    found, notes = compute(Request(**options))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    save_importance(given.out, found.importance, found.anchor, found.info)
    _table(found)
    print(f"importance: {given.out}")


def _refuse_unwritable(path: Path) -> None:
    """Before what may be hours of work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fits = not path.is_dir() and os.access(path.parent, os.W_OK)
    except OSError:
        fits = False
    if not fits:
        raise InputError(f"OUT={str(path)!r}, which cannot be written", "a file in a writable folder", "choose another")


def _inspect(argv: list[str]) -> None:
    parser = Parser(
        prog="lightning-cl importance inspect",
        description="Show what is in a file of importances, parameter by parameter.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="of importance compute or merge, a method's state_path")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="plain data on standard output in place of the table")
    how.add_argument("--html", metavar="PAGE", type=Path, help="write a page with the table and figures")
    parser.add_argument("--plot", metavar="PNG", type=Path, help="write both figures as one image")
    given = parser.parse_args(argv)
    from lightning_cl.files import as_json
    from lightning_cl.functional import summarize_importance
    from lightning_cl.importance_files import load_importance
    from lightning_cl.report.importance import write_importance_page, write_importance_plot

    found = load_importance(given.file)
    rows = summarize_importance(found.importance)
    if given.json:
        print(as_json({"info": found.info, "parameters": rows}), end="")
    else:
        _table(found)
    if given.html:
        page = write_importance_page(rows, f"Importance in {given.file.name}", facts(found.info), given.html)
        print(f"page: {page}")
    if given.plot:
        plot = write_importance_plot(rows, given.plot)
        print(f"plot: {plot}", file=sys.stderr if given.json else sys.stdout)


def _merge(argv: list[str]) -> None:
    parser = Parser(
        prog="lightning-cl importance merge",
        description="Make one file of several: of separate tasks, in the order in which they were learnt.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="two or more")
    parser.add_argument("--out", metavar="OUT", type=Path, required=True, help="the file to be written")
    parser.add_argument(
        "--how",
        default="sum",
        metavar="HOW",
        help="sum (default): the exact sum of the penalties; online: anchors of the newest; average: their mean",
    )
    parser.add_argument("--gamma", type=float, metavar="G", help="of online and average: weight of what came before")
    given = parser.parse_intermixed_args(argv)
    from lightning_cl.importance_files import merge_importances, save_importance

    found = merge_importances(given.files, given.how, given.gamma)
    save_importance(given.out, found.importance, found.anchor, found.info)
    _table(found)
    print(f"importance: {given.out}")


def _table(found: Any) -> None:
    from lightning_cl.functional import summarize_importance
    from lightning_cl.report import importance_table

    importance_table(summarize_importance(found.importance), ", ".join(facts(found.info)))


def facts(info: dict[str, Any]) -> list[str]:
    """What is said of a file's origin, in a few words each."""
    said = [str(info["kind"])] if info.get("kind") else []
    if isinstance(info.get("of"), list):
        said.append(f"{info.get('how')} of {len(info['of'])} files")
    said += [f"{key} {info[key]}" for key in ("labels", "stream") if info.get(key)]
    tasks = info.get("tasks")
    if isinstance(tasks, list) and tasks:
        said.append(str(tasks[0]) if len(tasks) == 1 else f"{len(tasks)} tasks")
    if info.get("n_samples"):
        said.append(f"{info['n_samples']:,} samples")
    return [*said, f"weights {info['weights']}"] if info.get("weights") else said
