"""``lightning-cl forget``"""

from collections.abc import Sequence
from pathlib import Path

from lightning_cl._parser import Parser


def main(argv: Sequence[str]) -> int:
    """Run the subcommand.

    Args:
        argv: Arguments after ``forget``.

    Returns:
        0.

    Raises:
        InputError: For bad input.
    """
    parser = Parser(
        prog="lightning-cl forget",
        description="Delete samples from the memory that a run folder holds, for good; the run still goes on. Its "
        "memory has ids if it was run with deletion_log=FILE: positions in the training data set, from 0.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("ids", metavar="ID", nargs="+", help="ids of samples: integers, or strings of an id_fn")
    given = parser.parse_intermixed_args(list(argv))
    from lightning_cl.forgetting import forget_samples

    # a command line cannot tell 5 from "5"
    numbers = [int(text) for text in given.ids if text.removeprefix("-").isdecimal() and text.isascii()]
    held = forget_samples(given.run, [*numbers, *given.ids])
    print(f"forgot {held} {'sample' if held == 1 else 'samples'} of {given.run}")
    return 0
