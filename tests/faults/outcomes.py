"""What comes of an injected fault: the right result, a clear refusal, a traceback, or something wrong or lost."""

import traceback
from dataclasses import dataclass

from utils.files import UserError

RIGHT = "right"
REFUSED = "refused"
TRACEBACK = "traceback"
WRONG = "wrong"
KINDS = (RIGHT, REFUSED, TRACEBACK, WRONG)
LONGEST = 1500  # characters of a message that a user still reads


@dataclass(frozen=True)
class Outcome:
    """kind: one of KINDS. note: the fault and what came of it, in one line."""

    kind: str
    note: str


def attempt(fault: str, act, complaint=None, names=()) -> Outcome:
    """The outcome of `act()`, with a fault in place.

    complaint: what is wrong with the result of `act`, or nothing; without it any result is right. names: a refusal is
    clear if it holds one of these, a file or a key; without them any short message is.
    """
    try:
        result = act()
    except UserError as error:
        return refusal(fault, str(error), names)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(TRACEBACK, f"{fault}: {type(error).__name__}: {error} ({place.filename}:{place.lineno})")
    found = complaint(result) if complaint else None
    return Outcome(WRONG, f"{fault}: {found}") if found else Outcome(RIGHT, fault)


def refusal(fault: str, message: str, names=()) -> Outcome:
    """Refused, if the message says in a few printable words what it is about; else wrong."""
    if len(message) > LONGEST:
        return Outcome(WRONG, f"{fault}: a message of {len(message)} characters")
    if not message.replace("\n", "").isprintable():
        return Outcome(WRONG, f"{fault}: a message that is not printable: {message!r}")
    if names and not any(name in message for name in names):
        return Outcome(WRONG, f"{fault}: the message names none of {names}: {message}")
    return Outcome(REFUSED, f"{fault}: {message}")
