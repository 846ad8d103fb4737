"""One network explains pair after pair: always the same of the same, and nothing piles up."""

import gc
import os
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from unittest import mock

import psutil
import torch
from faults.outcomes import Outcome, attempt

from utils import figure, load_trained, saved, view

WORK = "explanations, one after the other"
TRIES = 500
QUICK = 20
PAIRS = 5  # different ones
FIGURES = 10  # explanations between two figures
VIEWS = 50
GROWTH = 50 << 20  # bytes that the process may grow by after its first fifth


def faults(project, random, tries, folder):
    results = folder / "made"
    config = project.config(folder, {"checkpoints_path": str(project.checkpoints), "results_path": str(results)})
    temporary = folder / "temporary"
    temporary.mkdir()
    with mock.patch.object(tempfile, "tempdir", str(temporary)):
        trained = load_trained(config)
        with redirect_stdout(StringIO()):
            paths = trained.load_splits().folder.paths
        pairs = [tuple(paths[index] for index in random.choice(len(paths), 2, replace=False)) for _ in range(PAIRS)]
        firsts = {}
        for number in range(tries):
            pair = number % PAIRS if number < PAIRS else random.integers(PAIRS)
            yield _explained(number, trained, pairs[pair], firsts, results)
            if number == tries // 5:
                early = _used()
        late = _used()
    left = os.listdir(temporary)
    yield attempt("memory", lambda: late["memory"] - early["memory"], _complaint_of_growth)
    for name in ("files", "threads"):
        yield attempt(name, lambda name=name: late[name] - early[name], _complaint_of_more)
    yield attempt("temporary files", lambda: left, lambda names: f"left: {names[:5]}" if names else None)


def _explained(number, trained, pair, firsts, results) -> Outcome:
    """The outcome of one explanation, which is kept in `firsts` where it is the first of its pair."""

    def act():
        explanation = trained.explain(pair)
        shown = {}
        if number % FIGURES == 0:
            name = saved(figure(explanation), results).get_label()
            shown["figure"] = (results / f"{name}.png").read_bytes()
        if number % VIEWS == 0:
            shown["view"] = view(explanation)._repr_html_()
        return explanation, shown

    def complaint(found):
        explanation, shown = found
        known, known_shown = firsts.setdefault(pair, (explanation, {}))
        for name in ("distance", "towards_different", "towards_same", "probability", "images"):
            if not torch.equal(getattr(explanation, name), getattr(known, name)):
                return f"another {name}"
        if explanation.sentence() != known.sentence():
            return f"another sentence: {explanation.sentence()}"
        other = [name for name, content in shown.items() if known_shown.setdefault(name, content) != content]
        return f"another {other[0]}" if other else None

    return attempt(f"explanation {number}", act, complaint)


def _used() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    process = psutil.Process()
    return {"memory": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads()}


def _complaint_of_growth(growth):
    return f"it grew by {growth >> 20} MB" if growth >= GROWTH else None


def _complaint_of_more(more):
    return f"{more} more than at first" if more > 0 else None
