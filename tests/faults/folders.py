"""Folders that change while they are read, hold no files, or have odd names; and names through all that shows one.

Links, hidden files, system folders, empty and missing ones: tests/data/test_images.py and tests/data/test_listing.py.
"""

import csv
import io
import os
import shutil
import stat
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import numpy as np
from faults.damage import limited
from faults.outcomes import HANG, REFUSED, RIGHT, TRACEBACK, attempt
from matplotlib.cbook import is_math_text
from matplotlib.text import Text

import utils
from utils.data import splits as splitting
from utils.data.splits import load_images

NO_IMAGE = b"no image"
HOSTILE = (
    *("<img src=x onerror=alert(1)>", "\udcff\udcfe\udc80", "<\u2215script><script>alert(1)<\u2215script>"),
    *("\x1b[31mred\x1b]0;title\x07", "$x^2$ $\\frac{$", "line\nbreak\r\n\ttab", "\u202egnp.exe\u2066"),
    *("quotes \"'` onload='x' x=\"", "&amp; &lt;b&gt; &#60;", "\U0001f600 \u6f22\u5b57 \u0627\u0644\u0639\u0631\u0628"),
    *("x" * 200, "%s{0}{explanation} %(name)s", "-rf --help", "a..", "=cmd|' |C'!A0,\";", "<\u2215style><!-- ]]> -->"),
    *("\x7f\x85\x9b2J", "${PATH} $(touch x) `touch x`", "a_b^c\\alpha \\n \\u0041", "\ufeff\u200b e\u0301"),
)
ODD = (*HOSTILE, *("$", " ", "~", "~root", "#", "*", "a\\b", "\u6f22\u5b57" * 40, "CON", "caf\udce9"))
FOLDERS = {  # what must come of it, or "", and what each has once brought to light
    "odd names": ("", TRACEBACK),
    "pipes, sockets and devices": (RIGHT, HANG),
    "an image that is gone before it is decoded": ("", TRACEBACK),
    "an image that is gone before the audit": ("", TRACEBACK),
    "an image that is emptied": ("", TRACEBACK),
    "data_path a loop": (REFUSED, TRACEBACK),
    "data_path not UTF-8": ("", TRACEBACK),
}
WHOLE = {"html", "head", "meta", "title", "style", "body", "div", "script"}  # the elements of a page


def faults(project, random, tries, folder):
    for number in range(tries):
        kind = list(FOLDERS)[number % len(FOLDERS)]
        must, _ = FOLDERS[kind]
        root = folder.resolve() / str(number) / "Data"
        shutil.copytree(project.data, root)
        image = Path(random.choice(sorted(map(str, root.glob("*/*.png")))))
        changes = {"hyperparameters.verbose": False}
        if number % 2:
            changes["cache_path"] = None
        config = project.config(root.parent, changes)
        config = config.model_copy(update={"data_path": _inject(kind, root, image, random)})
        images = {path for path in root.glob("*/*") if path.suffix in (".png", ".PNG", ".jpg") and path.is_file()}
        late = image.name if "audit" in kind else ""
        act = partial(_loaded, kind, config, image)
        yield attempt(f"{kind}, {number}", act, partial(_unlike, images, late), must=must)
        shutil.rmtree(root.parent)


def _inject(kind, root, image, random) -> Path:
    """Change a folder of images as FOLDERS says; return what `data_path` is."""
    own = image.parent
    beside = root.parent / "beside"
    match kind:
        case "odd names":
            name, unreadable, renamed = random.permutation(ODD)[:3].tolist()
            image.rename(image.with_name(f"{name}.PNG"))
            image.with_name(f"{unreadable}.jpg").write_bytes(NO_IMAGE)
            own.rename(own.with_name(renamed))
        case "pipes, sockets and devices":
            os.mkfifo(own / "pipe.jpg")
            os.mkfifo(root / "pipe.png")
            os.mknod(own / "socket.png", stat.S_IFSOCK | 0o600)
            (own / "device.bmp").symlink_to("/dev/zero")
        case "data_path a loop":
            beside.symlink_to("beside")
            return beside
        case "data_path not UTF-8":
            beside = root.parent / "\udcff\udcfe"
            beside.symlink_to(root)
            return beside
    return root


def _loaded(kind, config, image):
    """Split and audit the images; an image may change meanwhile, after it is listed."""
    scan = splitting.scan

    def scanned(root):
        images = scan(root)
        if kind == "an image that is gone before it is decoded":
            image.unlink()
        if kind == "an image that is emptied":
            image.write_bytes(b"")
        return images

    with limited(memory=1 << 30), redirect_stdout(io.StringIO()), patch.object(splitting, "scan", scanned):
        splits = splitting.load_splits(config)
        utils.write_unreadable(splits.unreadable, config.results_path)
        if kind == "an image that is gone before the audit":
            image.unlink()
        str(utils.audit_images(splits.folder, splits.pixels, splits.duplicates))
    return splits


def _unlike(images, late, splits):
    """Say how splits differ from the images that a plain walk finds. late: one that went after it was decoded."""
    real = {Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in splits.folder.paths}
    if real != images:
        return f"images {real ^ images} are missed or too many"
    damaged = set()
    for index, path in enumerate(splits.folder.paths):
        whole = os.path.exists(path) and os.path.getsize(path) > len(NO_IMAGE)
        if not whole and os.path.basename(path) != late:
            damaged.add(index)
    if set(splits.pixels.unreadable) != damaged:
        return f"unreadable are {splits.pixels.unreadable}, not {damaged}"
    dealt = np.concatenate([splits.train, splits.valid, splits.test])
    if sorted(dealt.tolist()) != np.setdiff1d(np.arange(len(images)), list(damaged)).tolist():
        return "images are in no split, or in two"
    return None


class Elements(HTMLParser):
    """The elements of a page, each with the names of its attributes, and its comments."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, *dict(attributes)))

    def handle_comment(self, text):
        self.elements.append(("comment", text))


def hostile_names(project, random, tries, folder):
    """Show two hostile names of classes and files in everything that shows a name; each brought WRONG to light once."""
    trained = project.trained(folder / "run")
    plain = _named(project, trained, folder / "plain", ("first", "second"))
    verdict = utils.judge(trained.network, plain[1])
    _, pages = _drawn(plain, verdict)
    elements = {}
    for name, page in pages.items():
        elements[name] = Elements(page.html).elements
    order = random.permutation(HOSTILE).tolist()
    for number in range(tries):
        turn, place = divmod(2 * number, len(order))
        names = order[place], order[(place + 1 + 2 * turn) % len(order)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a name that makes each figure warn is a fault
            act = partial(_shown_incorrectly, project, trained, folder / str(number), names, verdict, elements)
            yield attempt(f"{names}", act, lambda complaint: complaint, must=RIGHT)


def _named(project, trained, place, names):
    """Copy two images under two names, with a copy and a file that is no image beside the first; explain the pair."""
    root = place / "Data"
    pair = []
    for name, source in zip(names, sorted(project.data.glob("*/*_0.png")), strict=False):
        (root / name).mkdir(parents=True)
        shutil.copy(source, root / name / f"{name}.png")
        shutil.copy(source, root / name / f"{name[::-1][:100]} copy.png")
        pair.append(str(root / name / f"{name}.png"))
    (root / names[0] / f"{names[1]}.jpg").write_bytes(NO_IMAGE)
    update = {"data_path": root, "results_path": place / "results", "cache_path": None}
    trained = replace(trained, config=trained.config.model_copy(update=update), classes=names)
    return trained, trained.explain(tuple(pair))


def _drawn(named, verdict) -> tuple[dict, dict]:
    """Draw all figures and all pages of a pair, by name. verdict: of the same images, for judging takes long."""
    trained, explanation = named
    verdict = replace(verdict, explanation=explanation)
    matches = utils.decompose(trained.network, explanation)
    folder, _, duplicates = load_images(trained.config)
    figures = {
        "figure": utils.figure(explanation, verdict),
        "images_figure": utils.images_figure(explanation),
        "grid_figure": utils.grid_figure(explanation),
        "methods_figure": utils.methods_figure({"first": verdict, "second": verdict}),
        "matches_figure": utils.matches_figure(matches),
        "duplicates_figure": utils.duplicates_figure(folder, duplicates),
    }
    grid = utils.grid(explanation, trained.network, verdict)
    return figures, {"view": utils.view(explanation, verdict, matches), "grid": grid}


def _shown_incorrectly(project, trained, place, names, verdict, elements):
    """Say what is wrong with the first thing that shows the names in another way than as text."""
    named = trained, explanation = _named(project, trained, place, names)
    results = place / "results"
    figures, pages = _drawn(named, verdict)
    for name, drawn in figures.items():
        utils.saved(drawn, results / name)
        for text in drawn.findobj(Text):
            content = text.get_text()
            if is_math_text(content) and not content.startswith("$\\mathdefault"):
                return f"{name} shows a formula: {content}"
    for name, page in pages.items():
        page.saved(results / name)
        (file,) = (results / name).iterdir()
        whole = Elements(file.read_bytes().decode("utf-8")).elements
        if Elements(page.html).elements != elements[name] or {tag for tag, *_ in whole} - WHOLE:
            return f"{name}: other elements"
    for name in (*figures, *pages):
        (file,) = (results / name).iterdir()
        if not file.name.isprintable() or len(os.fsencode(file.name)) > 200:
            return f"{name}: the name of a file is {file.name!r}"
    printed = io.StringIO()
    with redirect_stdout(printed):
        print(trained, explanation.sentence(), explanation.names, utils.audit_images(*load_images(trained.config)))
        utils.explain_folder(trained, explanation.source.paths, results / "scores")
    for line in printed.getvalue().split("\n"):
        if not line.isprintable():
            return f"prints {line!r}"
    with open(results / "scores" / "scores.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    if (row["image 1"], row["image 2"]) != explanation.names[0]:
        return f"{explanation.names[0]} are read back as {row}"
    missing = place / "Data" / names[0] / f"{names[1]} missing.png"
    outcome = attempt("a missing file", partial(trained.explain, (missing, missing)), must=REFUSED)
    return outcome.note if outcome.bad else None
