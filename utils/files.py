"""Text that is safe to show, errors that users can act on, and files that are written whole or not at all."""

import errno
import os
import secrets
import sys
import tempfile
import time
import traceback
import unicodedata
import zipfile
from contextlib import contextmanager
from pathlib import Path

JOINER = "\u200d"  # joins emoji to one
INTERRUPTED = 130  # the exit status that shells give a command that Ctrl-C has ended
GOES_ON = "Interrupted. Run the same again: it goes on from what is complete."
SILENCE = 5  # seconds without a line in a log
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def printable(text: str) -> str:
    """Return text with every invisible character, except line ends, as its code: `\\x1b`, `\\udcff`.

    An escape sequence in a file's name would control the terminal, and bytes that are not text cannot be encoded.
    """
    characters = []
    for character in str(text):
        visible = character in ("\n", JOINER) or not unicodedata.category(character).startswith("C")
        if not visible:
            character = coded(character)
        characters.append(character)
    return "".join(characters)


def coded(character: str) -> str:
    """Return the code of a character, in ASCII."""
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int) -> str:
    """Return at most `most` characters of a text; the middle is left out."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def prepare_output():
    """Print each line at once, also to a file or a pipe, and what its encoding lacks as codes, without an error.

    On Windows a pipe has code page 1252 or the like. Standard error does so by itself, and notebooks use UTF-8.
    """
    if getattr(sys.stdout, "errors", None) in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)


class LogLines:
    """Where bars go that nobody watches: a file or a pipe gets whole lines, and the state of a bar every SILENCE s."""

    def __init__(self):
        self.unfinished = ""
        self.printed = time.monotonic()

    def write(self, text: str):
        """Print the lines that are complete, each as it was drawn last."""
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        for line in lines:
            self._print(line.rpartition("\r")[2])
        state = self.unfinished.rpartition("\r")[2]
        if state != self.unfinished and state.strip() and time.monotonic() - self.printed > SILENCE:
            self._print(state)

    def flush(self):
        """Do nothing: each line is flushed."""

    def _print(self, line):
        print(line, flush=True)
        self.printed = time.monotonic()


class _WithoutTraceback:
    """An exception that notebooks show as its message."""

    def __init__(self, message=""):
        super().__init__(printable(message))

    def _render_traceback_(self):
        """Return what IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UserError(_WithoutTraceback, Exception):
    """What a user gave cannot be used; the message names the file or the key, the cause and the cure."""


class ExplanationError(UserError, ValueError):
    """What is to be explained has no explanation; the message says why."""


class FileError(UserError, OSError):
    """A file cannot be read or written; the message names it, the cause and the cure."""


class ExistsError(FileError, FileExistsError):
    """A folder exists, and nothing is overwritten; the message names it and the cure."""


class Interrupted(_WithoutTraceback, KeyboardInterrupt):
    """Training was interrupted; the message says where it continues."""


@contextmanager
def without_traceback():
    """End a command with the message of a UserError and status 1; after Ctrl-C with one line and INTERRUPTED."""
    try:
        yield
    except UserError as error:
        sys.exit(f"\n{error}")
    except (KeyboardInterrupt, RuntimeError, SystemError, ValueError) as error:
        if not is_ctrl_c(error):
            raise
        text = GOES_ON
        if isinstance(error, Interrupted):
            text = str(error)
        print(f"\n{text}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def is_ctrl_c(error: BaseException) -> bool:
    """Return whether Ctrl-C is behind an error: native code turns a KeyboardInterrupt into an error of its own."""
    return isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in "".join(traceback.format_exception(error))


@contextmanager
def atomic(path):
    """Open a binary file for writing; it appears under `path` when the block ends, and not at all if the block fails.

    It is written as `.NAME.*` in the same folder, which is created if missing, flushed to the disk and moved: readers
    of `path` get the old file or the new one, also where several threads or processes write it at once.

    Raises:
        FileError: It cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(_unwritable(path, error)) from error
    finally:
        if temporary.exists():
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folders(targets: dict[str, Path], cure: str):
    """Create a temporary folder with one folder for each name of `targets`, which are moved there when the block ends.

    Args:
        targets: By name, the folders to make, all in one parent folder. A failing block leaves none.
        cure: The end of the message if one exists.

    Raises:
        ExistsError: A target exists, perhaps made by another process meanwhile: nothing is overwritten.
        FileError: They cannot be written.
    """
    parent = next(iter(targets.values())).parent
    _refuse_existing(targets, cure)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".making_") as temporary:
            for name in targets:
                Path(temporary, name).mkdir()
            yield Path(temporary)
            for name, target in targets.items():
                os.rename(Path(temporary, name), target)  # fails where a folder with content exists
    except OSError as error:
        _refuse_existing(targets, cure)
        raise FileError(_unwritable(parent, error)) from error


def _refuse_existing(targets, cure):
    for target in targets.values():
        if target.exists():
            raise ExistsError(f"{target} exists: {cure}.")


def encodable(text: str) -> str:
    """Return a text as `write_text` writes it, which a name on disk may not be."""
    return text.encode(errors="backslashreplace").decode()


def write_text(path, text: str):
    """Write text in UTF-8, whole or not at all; bytes of a file's name that are not text are written as their code."""
    with atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def check_archive(path):
    """Compare the content of a zip archive, as torch saves it, with its checksums, which torch does not read.

    Raises:
        zipfile.BadZipFile: They differ, or the archive is cut off.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"its part {damaged} does not match its checksum")


def check_writable(folder: Path, key: str):
    """Create the folder that a key of config.yml names, and write a file into it.

    Raises:
        FileError: That fails; the message names the key.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"test")
    except OSError as error:
        raise FileError(f"{key}: {_unwritable(folder, error)}") from error


def _unwritable(path, error):
    cure = "Set another folder, or allow writing there."
    if error.errno in FULL:
        cure = "Make room and run the same again."
    return f"{path} cannot be written: {error.strerror or error}. {cure}"
