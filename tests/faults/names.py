"""Hostile names of classes and files, through everything that shows a name: drawn, written and printed as text."""

import base64
import csv
import io
import json
import os
import re
import shutil
import warnings
import zlib
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

from faults.outcomes import REFUSED, RIGHT, WRONG, Outcome, attempt
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from PIL import Image

from utils import (
    audit_images,
    decompose,
    duplicates_figure,
    explain_folder,
    figure,
    grid,
    grid_figure,
    images_figure,
    judge,
    load_trained,
    matches_figure,
    methods_figure,
    saved,
    view,
)
from utils.data.images import list_unreadable
from utils.data.splits import load_images
from utils.explanations.explanation import Explanation
from utils.trained import Trained
from utils.trust.faithfulness import Verdict

WORK = "hostile names"
TRIES = 20
QUICK = 5
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "\udcff\udcfe\udc80",  # bytes that are not UTF-8
    "<\u2215script><script>alert(1)<\u2215script>",  # for a slash, which no name can hold
    "\x1b[31mred\x1b]0;title\x07",
    "$x^2$ $\\frac{$",
    "line\nbreak\r\n\ttab",
    "\u202egnp.exe\u2066",
    "quotes \"'` onload='x' x=\"",
    "&amp; &lt;b&gt; &#60;",
    "\U0001f600 \u6f22\u5b57 \u0627\u0644\u0639\u0631\u0628",
    "x" * 200,
    "%s{0}{explanation} %(name)s",
    "-rf --help",
    "a..",
    "=cmd|' |C'!A0,\";",
    "<\u2215style><!-- ]]> -->",
    "\x7f\x85\x9b2J",
    "${PATH} $(touch x) `touch x`",
    "a_b^c\\alpha \\n \\u0041",
    "\ufeff\u200b e\u0301",
)
PLAIN = ("first", "second")
WHOLE = {"html", "head", "meta", "title", "style", "body", "div", "script"}  # the elements of a whole page
UNPACKED = re.compile(r"unpack\('([^']*)'\)")


class Elements(HTMLParser):
    """The elements of a page, each with the names of its attributes, and its comments: `found`."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *(name for name, _ in attrs)))

    def handle_comment(self, data):
        self.found.append(("comment", data))


@dataclass(frozen=True)
class Shown:
    """One explained pair of files of two names, each in a class of its name, in `root`.

    verdict: of the same images. loaded: all images of `root`, as `load_images` has them.
    """

    root: Path
    names: tuple[str, str]
    trained: Trained
    explanation: Explanation
    verdict: Verdict
    loaded: tuple

    @property
    def results(self) -> Path:
        return self.trained.config.results_path


def faults(project, random, tries, folder):
    trained = load_trained(project.trained_config(folder / "run", {"hyperparameters.verbose": False}))
    plain = _explained(project, trained, folder / "plain", PLAIN)
    elements = {name: _elements(page(plain).html) for name, page in PAGES.items()}
    order = random.permutation(HOSTILE).tolist()
    for number in range(tries):
        turn, place = divmod(2 * number, len(order))
        names = order[place], order[(place + 1 + 2 * turn) % len(order)]
        yield _outcome(project, trained, folder / str(number), names, plain.verdict, elements)


def _outcome(project, trained, place, names, verdict, elements) -> Outcome:
    """All that shows two names, as one outcome, with all that went wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a name that makes each figure warn is a fault
        made = []
        explained = attempt("explain", lambda: made.append(_explained(project, trained, place, names, verdict)))
        outcomes = [explained, *(_parts(made[0], elements) if made else ())]
    bad = [outcome for outcome in outcomes if outcome.kind not in (RIGHT, REFUSED)]
    if not bad:
        return Outcome(RIGHT, f"{names}")
    return Outcome(bad[0].kind, f"{names}: {'; '.join(outcome.note for outcome in bad)}")


def _parts(shown, elements):
    """What comes of everything that shows names."""
    for name, draw in FIGURES.items():
        folder = shown.results / name
        yield attempt(
            name, lambda draw=draw, folder=folder: saved(draw(shown), folder), partial(_drawn_wrongly, folder)
        )
    for name, page in PAGES.items():
        folder = shown.results / name
        complaint = partial(_page_wrongly, shown, folder, elements[name])
        yield attempt(name, lambda page=page, folder=folder: page(shown).saved(folder), complaint)
    yield attempt("text", partial(_text, shown), _printed_wrongly)
    yield attempt("scores.csv", partial(_scores, shown), partial(_scores_wrongly, shown))
    yield attempt("unreadable.csv", partial(_unreadable, shown), partial(_unreadable_wrongly, shown))
    missing = shown.root / shown.names[0] / f"{shown.names[1]} missing.png"
    outcome = attempt("missing file", lambda: shown.trained.explain((missing, missing)))
    yield Outcome(WRONG, "missing file: explained") if outcome.kind == RIGHT else outcome


def _explained(project, trained, place, names, verdict=None) -> Shown:
    """Copies of two images under two names, explained; a copy and a file that is no image beside the first."""
    root = place / "Data"
    for name, source in zip(names, sorted(project.data.glob("*/*_0.png")), strict=False):
        (root / name).mkdir(parents=True)
        shutil.copy(source, root / name / f"{name}.png")
        shutil.copy(source, root / name / f"{name[::-1][:100]} copy.png")
    (root / names[0] / f"{names[1]}.jpg").write_bytes(b"no image")
    config = trained.config.model_copy(
        update={"data_path": root, "results_path": place / "results", "cache_path": None}
    )
    trained = replace(trained, config=config, classes=names)
    pair = tuple(str(root / name / f"{name}.png") for name in names)
    explanation = trained.explain(pair)
    verdict = verdict or judge(trained.network, explanation)
    verdict = replace(verdict, explanation=explanation)
    return Shown(root, names, trained, explanation, verdict, load_images(trained.config))


def _duplicates(shown):
    folder, _, duplicates = shown.loaded
    return duplicates_figure(folder, duplicates)


FIGURES = {
    "figure": lambda shown: figure(shown.explanation, shown.verdict),
    "images_figure": lambda shown: images_figure(shown.explanation),
    "grid_figure": lambda shown: grid_figure(shown.explanation),
    "methods_figure": lambda shown: methods_figure({"one": shown.verdict, "two": shown.verdict}),
    "matches_figure": lambda shown: matches_figure(decompose(shown.trained.network, shown.explanation)),
    "duplicates_figure": _duplicates,
}
PAGES = {
    "view": lambda shown: view(shown.explanation, shown.verdict, decompose(shown.trained.network, shown.explanation)),
    "grid": lambda shown: grid(shown.explanation, shown.trained.network, shown.verdict),
}


def _drawn_wrongly(folder, drawn):
    """What is wrong with a figure, saved to a folder."""
    name = _named_wrongly(drawn.get_label(), folder, ".png")
    if name:
        return name
    with Image.open(folder / f"{drawn.get_label()}.png") as image:
        image.load()
        if min(image.size) < 50 or max(image.size) > 5000:
            return f"a figure of {image.size} pixels"
    texts = [text.get_text() for text in drawn.findobj(Text)]
    formulas = [text for text in texts if is_math_text(text) and not text.startswith("$\\mathdefault")]
    return f"{formulas[0]!r} is drawn as a formula" if formulas else None


def _named_wrongly(label, folder, ending):
    """What is wrong with the name of the only file of a folder."""
    if os.listdir(folder) != [f"{label}{ending}"]:
        return f"{label!r} was written as {os.listdir(folder)}"
    if not label.isprintable() or re.search(r"[/\\]", label) or len(os.fsencode(label)) > 200:
        return f"the name of a file is {label!r}"
    return None


def _page_wrongly(shown, folder, elements, page):
    """What is wrong with a page, saved to a folder. elements: those of the same page of plain names."""
    name = _named_wrongly(page.name, folder, ".html")
    if name:
        return name
    found = _elements(page.html)
    if found != elements:
        return f"elements {found}, not {elements}"
    whole = (folder / f"{page.name}.html").read_bytes().decode("utf-8")
    injected = {tag for tag, *_ in _elements(whole)} - {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "div",
        "script",
    }
    if injected:
        return f"elements {injected} in the page"
    packed = UNPACKED.search(page.html)[1]
    content = json.loads(zlib.decompress(base64.b64decode(packed)))
    view = content if "images" in content else content["pairs"][0]["view"]
    for image, name in zip(view["images"], shown.names, strict=True):
        if name.isprintable() and (image["name"], image["class"]) != (f"{name}/{name}.png", name):
            return f"{name!r} became {image['name']!r} of {image['class']!r}"
    return None


def _elements(text):
    elements = Elements(text)
    return elements.found


def _text(shown) -> str:
    """What a terminal is shown."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        print(shown.trained, shown.explanation.sentence(), shown.verdict.sentence(), shown.explanation.names, sep="\n")
        print(audit_images(*shown.loaded))
    return printed.getvalue()


def _printed_wrongly(text):
    """The first line of a text that is more than text to a terminal."""
    return next((f"prints {line!r}" for line in text.split("\n") if not line.isprintable()), None)


def _scores(shown):
    """Names in a table of scores, as it is read back."""
    explain_folder(shown.trained, shown.explanation.source.paths, shown.results / "scores")
    with open(shown.results / "scores" / "scores.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _scores_wrongly(shown, rows):
    if len(rows) != 1:
        return f"{len(rows)} rows"
    read = rows[0]["image 1"], rows[0]["image 2"]
    return None if read == shown.explanation.names[0] else f"{shown.explanation.names[0]} are read back as {read}"


def _unreadable(shown):
    """What is said of images that cannot be read, and their list, as it is read back."""
    folder, pixels, _ = shown.loaded
    printed = io.StringIO()
    with redirect_stdout(printed):
        list_unreadable(folder, pixels.unreadable, shown.results)
    with open(shown.results / "unreadable.csv", encoding="utf-8", newline="") as file:
        return printed.getvalue(), [row["file"] for row in csv.DictReader(file)]


def _unreadable_wrongly(shown, result):
    printed, read = result
    path = str(shown.root / shown.names[0] / f"{shown.names[1]}.jpg")
    if len(read) != 1 or (path.isprintable() and read != [path]):
        return f"{path!r} is read back as {read}"
    return _printed_wrongly(printed)
