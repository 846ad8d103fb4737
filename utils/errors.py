"""Errors that a user can cure, and interruptions: one message, with the cause and the cure, and no traceback."""

import os
import signal
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
