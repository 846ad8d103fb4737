"""One process at a time writes into a folder of checkpoints."""

import os
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.files import check_writable, leftovers, write_text
from utils.parallel import rank
from utils.training.checkpoint import CheckpointError
from utils.training.runs import BEST, CURRENT, LAST, NAMES

LOCK = ".lock"
OWNER = ".lock.owner"  # says who holds it; without meaning when no one does


@contextmanager
def claimed(checkpoints_path: Path):
    """Hold a folder of checkpoints, which is made where it lacks; a process that holds it may do so again inside.

    The system lets go of it when the process ends, however it ends. What processes that were killed left half-written
    is deleted. Of several processes that train as one the first holds it for all. Raises CheckpointError, naming the
    process, where another one holds it, FileError where no file can be written there.
    """
    if rank() > 0:
        yield
        return
    check_writable(checkpoints_path, "checkpoints_path")
    lock = FileLock(checkpoints_path / LOCK, is_singleton=True)  # one object a process, which counts
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise CheckpointError(_held(checkpoints_path)) from error
    try:
        if lock.lock_counter == 1:
            write_text(checkpoints_path / OWNER, _this_process())
            _clean(checkpoints_path)
        yield
    finally:
        lock.release()


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} ({Path(sys.argv[0]).name})\n"


def _held(checkpoints_path) -> str:
    owner = checkpoints_path / OWNER
    known = owner.read_text(encoding="utf-8", errors="replace").strip() if owner.is_file() else "another process"
    return (
        f"checkpoints_path: {known} is training in {checkpoints_path}. Wait until it has ended, stop it, "
        "or set another checkpoints_path."
    )


def _clean(checkpoints_path):
    """Delete what was half-written when a process was killed, and folders of runs that never had a whole epoch: no
    other process writes here now.
    """
    for folder in (checkpoints_path, *checkpoints_path.glob(NAMES)):
        for name in (BEST, LAST, CURRENT):
            for leftover in leftovers(folder, name):
                leftover.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
