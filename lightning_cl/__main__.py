"""``python -m lightning_cl``."""

import sys

from lightning_cl.cli import main

if __name__ == "__main__":
    sys.exit(main())
