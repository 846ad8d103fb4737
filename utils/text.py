"""Text from outside, such as the names of files: shown, never obeyed."""

import unicodedata

JOINER = "\u200d"  # holds an emoji of several together


def printable(text: str) -> str:
    """The same with every character that is not meant to be seen, but for line ends, as its code: `\\x1b`, `\\udcff`.

    Else an escape sequence in a file's name would drive the terminal, and bytes that are no text could not be encoded.
    """
    return "".join(character if _seen(character) else _code(character) for character in str(text))


def _seen(character):
    return character in ("\n", JOINER) or not unicodedata.category(character).startswith("C")


def _code(character):
    return character.encode("unicode_escape").decode("ascii")
