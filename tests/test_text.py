import os

import pytest

from utils.errors import UserError
from utils.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 一 🌹 👨‍👩‍👧.png", "Größe 一 🌹 👨‍👩‍👧.png"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # right-to-left override: shown as exe.png
        (os.fsdecode(b"\xff.png"), r"\udcff.png"),
    ],
)
def test_what_is_not_meant_to_be_seen_is_shown_as_its_code(text, shown):
    assert printable(text) == shown
    assert str(UserError(text)) == shown
    shown.encode()
