"""`make faults`: injects faults, and counts what came of them; the table goes to results/faults.md."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from faults.outcomes import KINDS
from faults.project import make_project
from faults.works import WORKS, outcomes_of

from utils.files import write_text


def main():
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("works", nargs="*", metavar="work", help=f"of {', '.join(WORKS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="of the faults of each work (default: all)")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--every", action="store_true", help="print every outcome, not only the bad ones")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        project = make_project(Path(temporary, "project"))
        for name in options.works or WORKS:
            began = time.perf_counter()
            tries = options.count or WORKS[name].tries
            outcomes = outcomes_of(name, project, tries, options.seed, Path(temporary, name))
            counts = dict.fromkeys(KINDS, 0)
            for outcome in outcomes:
                counts[outcome.kind] += 1
                if options.every or outcome.bad:
                    print(f"{outcome.kind}: {outcome.note}")
            rows.append({"work": WORKS[name].title, "tried": len(outcomes)} | counts)
            print(f"{rows[-1]} {time.perf_counter() - began:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    text = [f"# Injected faults, seed {options.seed}", ""]
    text += [f"| {' | '.join(table.columns)} |", "| --- " * table.shape[1] + "|"]
    for row in table.astype(str).values:
        text.append(f"| {' | '.join(row)} |")
    write_text(options.results / "faults.md", "\n".join(text) + "\n")
    sys.exit(int(table[["traceback", "wrong"]].to_numpy().sum() > 0))


if __name__ == "__main__":
    main()
