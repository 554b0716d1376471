"""One process at a time works in a run folder."""

import os
import socket
from pathlib import Path
from typing import IO

from lightning_cl.errors import FolderInUse, InputError

NAME = ".lock"


class RunLock:
    """A lock of the operating system on ``run_dir/.lock``; it is gone when its process is, however that ends.

    The same process may take it again (a run that failed and is begun anew). Workers of a DataLoader do not hold it.
    Where the file system has no locks (some network drives), none is taken.

    Args:
        run_dir: The run folder.

    Raises:
        InputError: If another process works there.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / NAME
        self._file: IO[str] | None = None
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = open(self.path, "a+")  # noqa: SIM115 - open as long as the run
            try:
                # lockf, not flock: a lock of the process, which its forked workers do not inherit
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise self._in_use(file) from error
            except OSError:
                file.close()
                return
            if self._is_still_there(file):
                self._file = file
            else:  # its last holder has removed it meanwhile
                file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def _in_use(self, file: IO[str]) -> InputError:
        file.seek(0)
        holder = " ".join(file.read().split()) or "another process"
        file.close()
        return FolderInUse(
            f"run folder {str(self.path.parent)!r} is in use by {holder}",
            "one process in a run folder",
            "wait for it, or choose another with hydra.run.dir=FOLDER",
        )

    def _is_still_there(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others in; does nothing the second time."""
        file, self._file = self._file, None
        if file is not None:
            self.path.unlink(missing_ok=True)
            file.close()
