"""``lightning-cl interpolate``"""

from collections.abc import Sequence
from pathlib import Path

from lightning_cl._parser import Parser


def main(argv: Sequence[str]) -> int:
    """Run the subcommand.

    Args:
        argv: Arguments after ``interpolate``.

    Raises:
        InputError: For bad input.
    """
    parser = Parser(
        prog="lightning-cl interpolate",
        description="Write the model between two checkpoints, of which the second was fine-tuned from the first.",
    )
    parser.add_argument("before", metavar="BEFORE", type=Path, help="a Lightning checkpoint, or a run folder")
    parser.add_argument("after", metavar="AFTER", type=Path, help="the same of the fine-tuned model")
    parser.add_argument("--alpha", type=float, default=0.5, help="0: before, 1: after (default: 0.5)")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the file to be written")
    given = parser.parse_intermixed_args(list(argv))
    from lightning_cl.checkpoints import interpolate_checkpoints

    interpolate_checkpoints(given.before, given.after, given.alpha, given.out)
    print(f"model: {given.out}")
    return 0
