"""Arguments of a subcommand."""

import argparse
from typing import NoReturn

from lightning_cl.errors import InputError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else does."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise InputError(message, f"{self.prog} as its --help says", f"see {self.prog} --help")
