"""Files are written whole or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path):
    """A binary file to write into; it appears under `path` when the block ends, and not at all if the block fails.

    Written under a temporary name in the same folder, which is created where it lacks, flushed to the disk and moved
    into place: whoever reads `path` finds the old file or the new one. Raises OSError when it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text: str):
    """Write `text` to `path`, UTF-8, whole or not at all."""
    with atomic(path) as file:
        file.write(text.encode())
