"""Text from outside, such as the names of files: shown, never obeyed."""

import errno
import os
import pickle
import re
import secrets
import shutil
import signal
import struct
import sys
import tempfile
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

JOINER = "\u200d"  # holds an emoji of several together


def printable(text: str) -> str:
    """The same with every character that is not meant to be seen, but for line ends, as its code: `\\x1b`, `\\udcff`.

    Else an escape sequence in a file's name would drive the terminal, and bytes that are no text could not be encoded.
    """
    return "".join(character if _seen(character) else coded(character) for character in str(text))


def print_any_name():
    """Let this process print a character that the console's or pipe's encoding lacks as its code, instead of raising
    UnicodeEncodeError; all other characters are printed as before.

    On Windows a pipe or a file has code page 1252 or the like. Standard error does so by itself, and notebooks are
    UTF-8.
    """
    stream = sys.stdout
    if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def shortened(text: str, most: int) -> str:
    """The same; its middle left out where it has more than `most` characters."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def coded(character: str) -> str:
    """The code of a character, in ASCII."""
    return character.encode("unicode_escape").decode("ascii")


def _seen(character):
    return character in ("\n", JOINER) or not unicodedata.category(character).startswith("C")


INTERRUPTED = 130  # the exit status that shells give a command that Ctrl-C has ended
GOES_ON = "Interrupted. Run the same again: it goes on from what is complete."


class _MessageAlone:
    def __init__(self, message=""):
        super().__init__(printable(message))

    def _render_traceback_(self):
        """What IPython shows in a notebook instead of a traceback: the message alone."""
        return [f"{type(self).__name__}: {self}"]


class UserError(_MessageAlone, Exception):
    """What a user gave cannot be used; the message names the file or the key, the cause and the cure."""


class ExplanationError(UserError, ValueError):
    """What is to be explained has no explanation; the message says why."""


class Interrupted(_MessageAlone, KeyboardInterrupt):
    """Training was interrupted; the message says from where it goes on."""


@contextmanager
def message_alone():
    """Around a command, also as a decorator: a UserError ends it with its message and exit status 1, Ctrl-C with one
    line and INTERRUPTED.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except UserError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt as error:
        _say(str(error) or GOES_ON)
        sys.exit(INTERRUPTED)
    finally:
        if handler is _end:
            signal.signal(signal.SIGINT, _end)


def end_quietly():
    """From now on Ctrl-C ends this process at once, with one line; `message_alone` has a command stop by itself.

    While torch and NumPy are imported, an exception would be swallowed, and leave them half imported.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # or the shell wants it ignored
        signal.signal(signal.SIGINT, _end)


def _end(number, _):
    _say(GOES_ON)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # so that the shell knows what ended it


def _say(text):
    print(f"\n{text}", file=sys.stderr)


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


SIGNATURE = b"PK\x03\x04"
# what the standard library and torch raise for damaged files; a pickle that holds code is an UnpicklingError
UNLOADABLE = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, TypeError)
UNLOADABLE += (RuntimeError, ValueError, struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError)


class DamagedArchiveError(ValueError):
    """The archive is not as it was saved; the message says in what."""


def is_archive(path: Path) -> bool:
    """Whether the file is such an archive, or the beginning of one; older versions of torch saved no archives."""
    with open(path, "rb") as file:
        start = file.read(len(SIGNATURE))
    return SIGNATURE.startswith(start)


def check_archive(path: Path, whole=True):
    """Raises DamagedArchiveError for an archive that is cut off, that would unpack to more than its own size, or, with
    `whole`, whose content does not match its checksums, which torch itself does not look at.
    """
    size = os.path.getsize(path)
    if not zipfile.is_zipfile(path):  # its directory stands at the very end
        raise DamagedArchiveError("it is empty" if not size else "it is truncated")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
            wrong = archive.testzip() if whole and unpacked <= size else None
    except UNLOADABLE as error:
        raise DamagedArchiveError(f"its directory cannot be read ({error})") from error
    if unpacked > size:
        raise DamagedArchiveError(f"its {size:,} bytes would unpack to {unpacked:,}, and torch packs nothing")
    if wrong:
        raise DamagedArchiveError(f"its part {wrong} does not match its checksum")
