"""`make faults`: injects faults, and counts what came of them; the table goes to results/faults.md and faults.json."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from faults.outcomes import KINDS, TRACEBACK, WRONG
from faults.project import make_project
from faults.works import WORKS

from utils.files import write_text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the faults of each work (default: all)")
    parser.add_argument("--only", nargs="*", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    rows = []
    bad = []
    with tempfile.TemporaryDirectory() as temporary:
        project = make_project(Path(temporary, "project"))
        for name in options.only:
            work = WORKS[name]
            began = time.perf_counter()
            folder = Path(temporary, name)
            folder.mkdir()
            tries = max(1, round(work.TRIES * options.share))
            random = np.random.default_rng([options.seed, list(WORKS).index(name)])
            outcomes = list(work.faults(project, random, tries, folder))
            counts = {kind: sum(outcome.kind == kind for outcome in outcomes) for kind in KINDS}
            rows.append({"work": work.WORK, "tried": len(outcomes)} | counts)
            notes = [f"{name}: {one.note}" for one in outcomes if one.kind in (TRACEBACK, WRONG)]
            bad += notes
            print("\n".join([f"{rows[-1]} {time.perf_counter() - began:.0f} s", *notes]), flush=True)
    table = _table(rows)
    print(f"\n{table}")
    write_text(options.results / "faults.md", f"# Injected faults, seed {options.seed}\n\n{table}\n")
    write_text(options.results / "faults.json", json.dumps(rows, indent=2) + "\n")
    sys.exit(1 if bad else 0)


def _table(rows) -> str:
    """Rows as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
