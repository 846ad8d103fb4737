"""`make faults`: injects faults, and counts what came of them; the table goes to results/faults.md and faults.json."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from faults.outcomes import KINDS
from faults.places import FAMILIES, outcomes_of_family
from faults.project import make_project
from faults.works import WORKS, outcomes_of

from utils.files import write_text


def main():
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("works", nargs="*", metavar="work", help=f"of {', '.join(WORKS)}, or families of timm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="of the faults of each work (default: all)")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    families = [name for name in options.works if name in FAMILIES]
    if families:
        bad = 0
        for family in families:
            bad += _report(outcomes_of_family(family), every=True)
        sys.exit(bad > 0)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        project = make_project(Path(temporary, "project"))
        for name in options.works or WORKS:
            began = time.perf_counter()
            outcomes = outcomes_of(
                name, project, options.count or WORKS[name].tries, options.seed, Path(temporary, name)
            )
            counts = dict.fromkeys(KINDS, 0)
            for outcome in outcomes:
                counts[outcome.kind] += 1
            rows.append({"work": WORKS[name].title, "tried": len(outcomes)} | counts)
            print(f"{rows[-1]} {time.perf_counter() - began:.0f} s")
            _report(outcomes, every=options.works == ["places"])
    table = pd.DataFrame(rows)
    print(f"\n{table.to_string(index=False)}")
    text = [
        f"# Injected faults, seed {options.seed}\n",
        f"| {' | '.join(table.columns)} |",
        "| --- " * table.shape[1] + "|",
    ]
    for row in table.astype(str).values:
        text.append(f"| {' | '.join(row)} |")
    write_text(options.results / "faults.md", "\n".join(text) + "\n")
    write_text(options.results / "faults.json", json.dumps(rows, indent=2) + "\n")
    sys.exit(int(table[["traceback", "wrong"]].to_numpy().sum() > 0))


def _report(outcomes, every) -> int:
    """Print the bad outcomes, or every one; return how many are bad."""
    bad = 0
    for outcome in outcomes:
        bad += outcome.bad
        if every or outcome.bad:
            print(f"{outcome.kind}: {outcome.note}", flush=True)
    return bad


if __name__ == "__main__":
    main()
