"""`make benchmark`: every comparison in one table, to results/benchmark.md and results/benchmark.json."""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

import growth
import quality
import side_by_side
import speed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="Data/Shapes", help="folder of classes for time to quality")
    parser.add_argument("--budget", type=float, default=240, help="seconds of training in time to quality")
    parser.add_argument("--results", type=Path, default=side_by_side.ROOT / "results")
    parser.add_argument("--photographs", help="folder of classes of photographs, for fine-tuning")
    parser.add_argument("--weights", help="file of weights of the backbone of photographs.yml")
    parser.add_argument("parts", nargs="*", default=["speed", "growth", "quality", "pretrained"])
    arguments = parser.parse_args()
    rows, lines = [], [side_by_side.machine()]
    if not arguments.photographs:
        arguments.parts = [part for part in arguments.parts if part != "pretrained"]
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            if part == "quality":
                found = quality.run(Path(folder), arguments.data, arguments.budget)
            elif part == "pretrained":
                found = quality.run_pretrained(Path(folder), arguments.photographs, arguments.weights or True)
            else:
                found = {"speed": speed, "growth": growth}[part].run(Path(folder))
        rows, lines = rows + found[0], lines + found[1]
    table = ["| work | against | ratio | at least | spread | |", "| --- | --- | --- | --- | --- | --- |"]
    for line in rows:
        target = "" if line.target is None else f"{line.target:.3g}x"
        reached = line.target is None or line.ratio >= line.target
        spread = "" if line.spread is None else f"{line.spread[0]:.3g} to {line.spread[1]:.3g}"
        ratio = f"{line.ratio:.3g}x" if reached else f"**{line.ratio:.3g}x**"
        table.append(f"| {line.work} | {line.against} | {ratio} | {target} | {spread} | {line.note} |")
    text = "\n".join([f"# Benchmark of {date.today()}", "", *table, "", "Targets missed are in bold.", "", *lines, ""])
    arguments.results.mkdir(parents=True, exist_ok=True)
    content = [{"work": x.work, "against": x.against, "ratio": round(x.ratio, 4), "target": x.target} for x in rows]
    (arguments.results / "benchmark.json").write_text(json.dumps(content, indent=2) + "\n")
    (arguments.results / "benchmark.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
