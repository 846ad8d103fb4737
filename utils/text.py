"""Text from outside, such as the names of files: shown, never obeyed."""

import sys
import unicodedata

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
