"""Files are written whole or not at all."""

import errno
import os
import re
import secrets
import shutil
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError

SEAL = 4  # bytes of a checksum
TEMPORARY = re.compile(r"[0-9a-f]{16}|\d+")  # how temporary names end; of earlier versions, by the process's number
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileError(UserError, OSError):
    """A file cannot be read or written; the message names it, the cause and the cure."""


class ExistsError(FileError, FileExistsError):
    """A folder is there already, and nothing is overwritten; the message names it and the cure."""


@contextmanager
def atomic(path):
    """A binary file to write into; it appears under `path` when the block ends, and not at all if the block fails.

    Written under a temporary name of its own in the same folder, which is created where it lacks, flushed to the disk
    and moved into place: whoever reads `path` finds the old file or the new one, also where several threads or
    processes write it at once. Raises FileError when it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(_unwritten(path, error, size)) from error
    finally:
        if temporary.exists():
            temporary.unlink(missing_ok=True)


def leftovers(folder: Path, name: str) -> list[Path]:
    """The temporary files that processes which were killed left in a folder when they wrote the file of this name.

    Whoever asks must know that no process is writing it now.
    """
    start = f".{name}."
    found = []
    for path in folder.iterdir():
        if path.name.startswith(start) and TEMPORARY.fullmatch(path.name.removeprefix(start)):
            found.append(path)
    return found


@contextmanager
def whole_folders(targets: dict[str, Path], cure: str):
    """A folder to fill, with one inside for each of `targets`; they are moved there when the block ends.

    All lie in one folder. An interrupted or failing block leaves none. Raises ExistsError, with the cure, when one
    exists, even if another process made it meanwhile: nothing is overwritten. Raises FileError where they cannot be
    written.
    """
    parent = next(iter(targets.values())).parent
    for target in targets.values():
        _refuse_existing(target, cure)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".making_") as temporary:
            for name in targets:
                Path(temporary, name).mkdir()
            yield Path(temporary)
            for name, target in targets.items():
                _refuse_existing(target, cure)
                os.rename(Path(temporary, name), target)  # fails where a folder with content is there
    except UserError:
        raise
    except OSError as error:
        for target in targets.values():
            _refuse_existing(target, cure)
        raise FileError(_unwritten(parent, error)) from error


def _refuse_existing(target, cure):
    if target.exists():
        raise ExistsError(f"{target} exists: {cure}.")


def remove(path: Path):
    """Delete a file, if it is there. Raises FileError when it cannot be deleted."""
    try:
        if path.exists():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be deleted: {error.strerror}. Delete it, or set another folder.") from error


def write_text(path, text: str):
    """Write `text` to `path`, UTF-8, whole or not at all; what is no text, of a file's name, as its code."""
    with atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def seal(content) -> bytes:
    """The checksum that stands behind bytes, SEAL bytes itself."""
    return zlib.crc32(content).to_bytes(SEAL)


def write_sealed(path, content: bytes):
    """Write `content` to `path`, whole, with its checksum behind it."""
    with atomic(path) as file:
        file.write(content)
        file.write(seal(content))


def read_sealed(path) -> bytes:
    """What `write_sealed` wrote. Raises OSError for a file that is missing, ValueError for one that is damaged."""
    content = Path(path).read_bytes()
    if content[-SEAL:] != seal(content[:-SEAL]):
        raise ValueError(f"{path} is damaged")
    return content[:-SEAL]


def check_writable(folder: Path, key: str):
    """Raises FileError, naming the key of config.yml, where no file can be written into the folder, which is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"tried")
    except OSError as error:
        raise FileError(f"{key}: {_unwritten(folder, error)}") from error


def megabytes(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 1e6:,.1f} MB"


def _unwritten(path, error, size=0) -> str:
    """Why nothing could be written, and what to do."""
    cause = f"{path} cannot be written: {error.strerror or error}."
    if error.errno not in FULL:
        return f"{cause} Set another folder, or allow writing there."
    room = f"{megabytes(shutil.disk_usage(_existing(path)).free)} are free there"
    needed = f", {megabytes(size)} are needed" if size else ""
    return f"{cause} {room[0].upper()}{room[1:]}{needed}: make room and run the same again."


def _existing(path):
    return next(parent for parent in (path, *path.parents) if parent.is_dir())
