"""Errors that a user can cure, and interruptions: one message, with the cause and the cure, and no traceback."""

import sys
from contextlib import contextmanager

from utils.text import printable

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


class Interrupted(_MessageAlone, KeyboardInterrupt):
    """Training was interrupted; the message says from where it goes on."""


@contextmanager
def message_alone():
    """Around a command, also as a decorator: a UserError ends it with its message and exit status 1, Ctrl-C with one
    line and INTERRUPTED.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt as error:
        _say(error)
        sys.exit(INTERRUPTED)


def end_quietly():
    """From now on this process says one line when Ctrl-C ends it, instead of a traceback."""
    usual = sys.excepthook

    def say(kind, error, traceback):
        if issubclass(kind, KeyboardInterrupt):
            _say(error)
        else:
            usual(kind, error, traceback)

    sys.excepthook = say


def _say(error: KeyboardInterrupt):
    print(f"\n{str(error) or GOES_ON}", file=sys.stderr)
