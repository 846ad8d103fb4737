"""Archives as torch saves them: zip files whose parts stand uncompressed, each with a checksum."""

import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

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
