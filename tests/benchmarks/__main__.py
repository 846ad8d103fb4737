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


def run_part(part: str, folder: Path, arguments):
    """Return the rows of a part, and lines to stand under the table."""
    if part == "speed":
        return speed.run(folder)
    if part == "growth":
        return growth.run(folder)
    if part == "quality":
        return quality.run(folder, arguments.data, arguments.budget)
    return quality.run_pretrained(folder, arguments.photographs, arguments.weights or True)


def table_line(row: side_by_side.Row) -> str:
    """Return a row as a line of a Markdown table, in bold where the target is missed."""
    ratio = f"{row.ratio:.3g}x"
    target = ""
    if row.target is not None:
        target = f"{row.target:.3g}x"
        if row.ratio < row.target:
            ratio = f"**{ratio}**"
    spread = ""
    if row.spread is not None:
        spread = f"{row.spread[0]:.3g} to {row.spread[1]:.3g}"
    return f"| {row.work} | {row.against} | {ratio} | {target} | {spread} | {row.note} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="Data/Butterflies", help="folder of classes for time to quality")
    parser.add_argument("--budget", type=float, default=240, help="seconds of training in time to quality")
    parser.add_argument("--results", type=Path, default=side_by_side.ROOT / "results")
    parser.add_argument("--photographs", help="folder of classes of photographs, for fine-tuning")
    parser.add_argument("--weights", help="file of weights of the backbone of photographs.yml")
    parser.add_argument("parts", nargs="*", default=["speed", "growth", "quality", "pretrained"])
    arguments = parser.parse_args()
    lines = ["| work | against | ratio | at least | spread | |", "| --- | --- | --- | --- | --- | --- |"]
    remarks = [side_by_side.machine()]
    content = []
    for part in arguments.parts:
        if part == "pretrained" and not arguments.photographs:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows, part_remarks = run_part(part, Path(folder), arguments)
        remarks += part_remarks
        for row in rows:
            lines.append(table_line(row))
            numbers = {"work": row.work, "against": row.against, "ratio": round(row.ratio, 4), "target": row.target}
            content.append(numbers)
    title = f"# Benchmark of {date.today()}"
    text = "\n".join([title, "", *lines, "", "Missed targets are in bold.", "", *remarks, ""])
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "benchmark.json").write_text(json.dumps(content, indent=2) + "\n")
    (arguments.results / "benchmark.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
