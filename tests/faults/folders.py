"""Folders of images with whatever lies in them: the images found are those that a plain listing finds, or refused."""

import io
import os
import shutil
import signal
import socket
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
from faults.outcomes import REFUSED, RIGHT, WRONG, Outcome, attempt
from PIL import Image

from utils import audit
from utils.data import load_splits, pairs
from utils.data.transforms import stored_size

WORK = "folders and names"
TRIES = 60
QUICK = 15
LONGEST = 20  # seconds that a folder may take
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif")
MANY = 2000
ODD_NAMES = (
    *("a\nb", "$x$", "$", "'\"", "\U0001f600", "-rf", " ", "a b ", "~", "~root", "#", "*", "%s{0}", "a\\b", "a\tb"),
    *("x" * 250, "\u6f22\u5b57" * 40, "\u202egnp", "\x1b[31m", "\x7f", "&amp;", "<b>", "..a", "a.", "CON", "e\u0301"),
)
NOT_UTF_8 = (b"\xff\xfe", b"a\x80", b"\xed\xa0\x80", b"caf\xe9")


class Late(Exception):
    """What was tried did not end in time."""


def faults(project, random, tries, folder):
    for number in range(tries):
        turn, kind = divmod(number, len(KINDS))
        place = folder / str(number)
        shutil.copytree(project.data, place / "Data")
        yield KINDS[kind](Case(project, random, turn, place))


class Case:
    """A copy of the images, to be changed, and what comes of it."""

    def __init__(self, project, random, turn, place):
        self.project = project
        self.random = random
        self.turn = turn
        self.place = place
        self.root = place / "Data"

    def image(self):
        """Any image file of the folder."""
        return Path(self.random.choice(sorted(self.root.glob("*/*.png"))))

    def class_folder(self):
        return Path(self.random.choice(sorted(path for path in self.root.iterdir() if path.is_dir())))

    def name(self):
        """An odd name, and a few letters that keep names apart."""
        return f"{self.random.choice(ODD_NAMES)}"
