"""Errors that a user can cure: one message, with the cause and the cure, and no traceback."""

import sys
from contextlib import contextmanager


class UserError(Exception):
    """What a user gave cannot be used; the message names the file or the key, the cause and the cure."""

    def _render_traceback_(self):
        """What IPython shows in a notebook instead of a traceback: the message alone."""
        return [f"{type(self).__name__}: {self}"]


@contextmanager
def message_alone():
    """Around a command, also as a decorator: a UserError ends it with its message and exit status 1."""
    try:
        yield
    except UserError as error:
        sys.exit(f"\n{error}")
