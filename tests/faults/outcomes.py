"""What comes of an injected fault: the right result, a clear refusal, a traceback, or something wrong or lost.

Tables of faults give the word for what each kind has once brought to light: TRACEBACK, WRONG, HANG, MEMORY, or UNCLEAR
(the message); "" for those that have brought nothing to light so far.
"""

import traceback
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

from utils.files import UserError

RIGHT = "right"
REFUSED = "refused"
TRACEBACK = "traceback"
WRONG = "wrong"
KINDS = (RIGHT, REFUSED, TRACEBACK, WRONG)
HANG = "hang"  # counted as wrong
MEMORY = "memory"  # counted as a traceback
UNCLEAR = "unclear"  # counted as wrong
LONGEST = 1500  # characters of a message that a user still reads


@dataclass(frozen=True)
class Outcome:
    """What came of one fault."""

    kind: str
    """One of KINDS."""
    note: str
    """The fault and what came of it, in one line."""

    @property
    def bad(self) -> bool:
        return self.kind in (TRACEBACK, WRONG)


def attempt(fault: str, act, complaint=None, names=(), must="", of_program=False) -> Outcome:
    """Return the outcome of `act()` with a fault in place.

    Args:
        fault: What was injected.
        act: A function without arguments.
        complaint: From the result of `act` to what is wrong with it, or nothing; without it any result is right.
        names: A refusal is clear if it holds one of these, a file or a key; without them any short message is.
        must: RIGHT or REFUSED where only that will do.
        of_program: Whether programs give what is refused: then a ValueError that the project raises is a refusal.
    """
    try:
        result = act()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raised = Path(place.filename).is_relative_to(ROOT / "utils") and place.line.startswith("raise ")
        if isinstance(error, UserError) or (of_program and raised and isinstance(error, ValueError)):
            outcome = refusal(fault, str(error), names)
        else:
            text = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            outcome = Outcome(TRACEBACK, f"{fault}: {text}")
    else:
        outcome = judged(fault, complaint and complaint(result))
    if must and not outcome.bad and outcome.kind != must:
        return Outcome(WRONG, f"{outcome.note}: {outcome.kind}, but only {must} will do")
    return outcome


def judged(fault: str, complaint) -> Outcome:
    """Return a right outcome, or a bad one where there is a complaint."""
    if not complaint:
        return Outcome(RIGHT, fault)
    if "Traceback (most" in complaint:
        return Outcome(TRACEBACK, f"{fault}: {complaint}")
    return Outcome(WRONG, f"{fault}: {complaint}")


def refusal(fault: str, message: str, names=()) -> Outcome:
    """Return a refusal if the message says in a few printable words what it is about; else it is wrong."""
    if len(message) > LONGEST:
        return Outcome(WRONG, f"{fault}: a message of {len(message)} characters")
    if not message.replace("\n", "").isprintable():
        return Outcome(WRONG, f"{fault}: a message that is not printable: {message!r}")
    if names and not any(name in message for name in names):
        return Outcome(WRONG, f"{fault}: the message names none of {names}: {message}")
    return Outcome(REFUSED, f"{fault}: {message}")
