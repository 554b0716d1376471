"""Which of several processes this is, as its environment tells. Imports nothing heavy."""

import os

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # of torchrun, of srun, of Lightning's launcher


def rank_in_environment() -> int:
    """This process's place among those that were started together; 0 if it is alone."""
    given = (os.environ.get(name, "") for name in RANKS)
    return next((int(rank) for rank in given if rank.isdigit()), 0)
