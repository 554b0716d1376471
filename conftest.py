"""One thread a process, before torch is imported: two test processes share two cores, and sums keep their order."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
