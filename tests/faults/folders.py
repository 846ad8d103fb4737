"""Folders of images with whatever may lie in them, and hostile names, through everything that shows a name."""

import base64
import csv
import io
import json
import os
import re
import shutil
import stat
import warnings
import zlib
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import numpy as np
from faults.damage import limited
from faults.outcomes import HANG, REFUSED, RIGHT, TRACEBACK, UNCLEAR, WRONG, attempt
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from PIL import Image

import utils
from utils.data import splits as splitting
from utils.data.splits import load_images

NEAR = 1.0  # grey levels, on average, by which one way to resize differs from another
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif")
MANY = 2000
HOSTILE = (
    *("<img src=x onerror=alert(1)>", "\udcff\udcfe\udc80", "<\u2215script><script>alert(1)<\u2215script>"),
    *("\x1b[31mred\x1b]0;title\x07", "$x^2$ $\\frac{$", "line\nbreak\r\n\ttab", "\u202egnp.exe\u2066"),
    *("quotes \"'` onload='x' x=\"", "&amp; &lt;b&gt; &#60;", "\U0001f600 \u6f22\u5b57 \u0627\u0644\u0639\u0631\u0628"),
    *("x" * 200, "%s{0}{explanation} %(name)s", "-rf --help", "a..", "=cmd|' |C'!A0,\";", "<\u2215style><!-- ]]> -->"),
    *("\x7f\x85\x9b2J", "${PATH} $(touch x) `touch x`", "a_b^c\\alpha \\n \\u0041", "\ufeff\u200b e\u0301"),
)
ODD = (
    *HOSTILE,
    "$",
    " ",
    "~",
    "~root",
    "#",
    "*",
    "a\\b",
    "\u6f22\u5b57" * 40,
    "CON",
    "caf\udce9",
    "\udced\udca0\udc80",
)
FOLDERS = {  # what must come of it, or "", and what each has once brought to light
    "odd names": ("", TRACEBACK),
    "pipes, sockets and devices": (RIGHT, HANG),
    "a link to nothing": (RIGHT, TRACEBACK),
    "a link to itself": (RIGHT, TRACEBACK),
    "a link of a class to itself": (RIGHT, TRACEBACK),
    "a link to a file": (RIGHT, ""),
    "a link to the folder": (RIGHT, ""),
    "a link to a class": (RIGHT, ""),
    "hidden files and other endings": (RIGHT, WRONG),
    "folders named like images": (RIGHT, TRACEBACK),
    "an empty class": (REFUSED, ""),
    "one class": (REFUSED, ""),
    "no class": (REFUSED, ""),
    "empty folders": (REFUSED, UNCLEAR),
    "a class of one image": (RIGHT, ""),
    "copies under two classes": (RIGHT, ""),
    "a folder in the place of an image": ("", TRACEBACK),
    "an image that is gone before it is decoded": ("", TRACEBACK),
    "an image that is gone before the audit": ("", TRACEBACK),
    "an image that is replaced": ("", ""),
    "an image that is emptied": ("", TRACEBACK),
    "data_path at home": (RIGHT, TRACEBACK),
    "data_path a link": (RIGHT, ""),
    "data_path with dots": (RIGHT, ""),
    "data_path missing": (REFUSED, ""),
    "data_path a file": (REFUSED, TRACEBACK),
    "data_path a loop": (REFUSED, TRACEBACK),
    "data_path not UTF-8": ("", TRACEBACK),
}
WHOLE = {"html", "head", "meta", "title", "style", "body", "div", "script"}  # the elements of a page


def faults(project, random, tries, folder):
    kinds = list(FOLDERS)
    for number in range(tries):
        kind = kinds[number % len(kinds)]
        root = folder / str(number) / "Data"
        shutil.copytree(project.data, root)
        must, _ = FOLDERS[kind]
        data_path = _inject(kind, root, random)
        listing = _listing(root)
        changes = {"data_path": data_path, "hyperparameters.verbose": False}
        if number % 2:
            changes["cache_path"] = None
        image = _image(root, random)
        with patch.dict(os.environ, HOME=str(root.parent)):
            act = partial(_loaded, kind, project, changes, image, root.parent)
            complaint = partial(_unlike, root, listing, image if "audit" in kind else None)
            yield attempt(f"{kind}, {root.parent.name}", act, complaint, must=must)
        shutil.rmtree(root.parent)


def _image(root, random):
    return Path(random.choice(sorted(map(str, root.glob("*/*.png"))) or [""]))


def _inject(kind, root, random) -> str:
    """Change a folder of images as FOLDERS says; return what `data_path` is."""
    image = _image(root, random)
    own = image.parent
    other = next(path for path in sorted(root.iterdir()) if path != own)
    beside = root.parent / "beside"
    match kind:
        case "odd names":
            name, unreadable, renamed = random.permutation(ODD)[:3].tolist()
            image.rename(image.with_name(f"{name}.PNG"))
            image.with_name(f"{unreadable}.jpg").write_bytes(b"no image")
            own.rename(own.with_name(renamed))
        case "pipes, sockets and devices":
            os.mkfifo(own / "pipe.jpg")
            os.mkfifo(root / "pipe.png")
            os.mknod(own / "socket.png", stat.S_IFSOCK | 0o600)
            (own / "device.bmp").symlink_to("/dev/zero")
        case "a link to nothing":
            (own / "link.png").symlink_to("missing.png")
            (root / "link").symlink_to("missing")
        case "a link to itself":
            (own / "link.png").symlink_to("link.png")
        case "a link of a class to itself":
            (root / "link").symlink_to("link")
        case "a link to a file":
            (own / "link.png").symlink_to(image)
        case "a link to the folder":
            (own / "link").symlink_to(root)
        case "a link to a class":
            (root / "link").symlink_to(own)
        case "hidden files and other endings":
            for name in (".DS_Store", f"._{image.name}", ".png", "Thumbs.db", "notes", "x.png.part"):
                image.with_name(name).write_bytes(b"\0")
            shutil.copytree(own, root / ".cache")
            shutil.copy(image, root / "beside.png")
        case "folders named like images":
            shutil.copytree(other, own / "below" / "more")
            (own / "folder.jpg").mkdir()
            (root / "class.png").mkdir()
            shutil.copy(image, root / "class.png")
        case "an empty class":
            (root / "empty").mkdir()
        case "one class" | "no class":
            for path in root.iterdir():
                if path != own or kind == "no class":
                    shutil.rmtree(path)
        case "empty folders":
            for number in range(MANY):
                (root / f"empty_{number}").mkdir()
        case "a class of one image":
            (root / "single").mkdir()
            shutil.copy(image, root / "single" / "copy.png")
        case "copies under two classes":
            shutil.copy(image, other)
        case "a folder in the place of an image":
            image.unlink()
            image.mkdir()
        case "data_path at home":
            return "~/Data"
        case "data_path a link":
            beside.symlink_to(root)
            return str(beside)
        case "data_path with dots":
            return f"{root.parent}/Data/../Data/."
        case "data_path missing":
            return str(beside)
        case "data_path a file":
            beside.write_bytes(b"")
            return str(beside)
        case "data_path a loop":
            beside.symlink_to("beside")
            return str(beside)
        case "data_path not UTF-8":
            beside = root.parent / "\udcff\udcfe"
            beside.symlink_to(root)
            return f"{root.parent}/\udcff\udcfe"
    return str(root)


def _loaded(kind, project, changes, image, folder):
    """Split and audit the images; an image may change meanwhile, after it is listed."""
    scan = splitting.scan

    def scanned(root):
        images = scan(root)
        match kind:
            case "an image that is gone before it is decoded":
                image.unlink()
            case "an image that is replaced":
                image.write_bytes(next(iter(image.parent.iterdir())).read_bytes())
            case "an image that is emptied":
                image.write_bytes(b"")
        return images

    with limited(memory=1 << 30), redirect_stdout(io.StringIO()), patch.object(splitting, "scan", scanned):
        config = project.config(folder, {key: value for key, value in changes.items() if key != "data_path"})
        config = config.model_copy(update={"data_path": Path(changes["data_path"]).expanduser()})
        splits = splitting.load_splits(config)
        utils.write_unreadable(splits.unreadable, config.results_path)
        if kind == "an image that is gone before the audit":
            image.unlink()
        str(utils.audit_images(splits.folder, splits.pixels, splits.duplicates))
    return splits


def _listing(root) -> dict[str, list[str]]:
    """List the image files of each class by a plain walk."""
    _, names, _ = next(os.walk(root))
    listing = {}
    for name in sorted(names):
        if not name.startswith("."):
            listing[name] = []
            _, _, files = next(os.walk(root / name), (None, None, []))
            for file in sorted(files):
                path = os.path.join(os.path.realpath(root / name), file)
                if not file.startswith(".") and file.lower().endswith(ENDINGS) and os.path.isfile(path):
                    listing[name].append(path)
    return listing


def _unlike(root, listing, late, splits):
    """Say how splits differ from the listing. late: an image that went after it was decoded."""
    folder = splits.folder
    if folder.classes != tuple(listing):
        return f"classes {folder.classes}, not {tuple(listing)}"
    paths = [path for name in listing for path in listing[name]]
    real = [os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in folder.paths]
    if real != paths:
        return f"images {set(real) ^ set(paths)} are missed or too many"
    if [len(files) for files in listing.values()] != np.bincount(folder.labels).tolist():
        return "labels of other classes"
    for index, path in enumerate(paths):
        plain = _plain(path, splits.pixels.size)
        if path == os.path.realpath(late or ""):
            continue
        if (plain is None) != (index in splits.pixels.unreadable):
            return f"{path!r} is unreadable, or not: {plain is None}"
        if plain is not None and np.abs(splits.pixels[np.array([index])][0].astype(int) - plain).mean() > NEAR:
            return f"other pixels of {path!r}"
    dealt = np.concatenate([splits.train, splits.valid, splits.test])
    if sorted(dealt.tolist()) != np.setdiff1d(np.arange(len(paths)), list(splits.pixels.unreadable)).tolist():
        return "images are in no split, or in two"
    names = [folder.paths[index] for index in splits.pixels.unreadable]
    return _listed_otherwise(root.parent / "results" / "unreadable.csv", names)


def _listed_otherwise(file, names):
    """Say what is wrong with the list of unreadable images."""
    if not names:
        return "a list of nothing" if file.exists() else None
    listed = [row["file"] for row in _rows(file)]
    for name, text in zip(names, listed, strict=True):
        if name.isprintable() and text != name:
            return f"{file.name} names {text!r}, not {name!r}"
    return None


def _rows(file):
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _plain(path, size):
    """Read by Pillow alone, resized: uint8 (*size, 3), or None where it reads nothing."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    except (OSError, SyntaxError):
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
    elements = {}
    plain = _named(project, trained, folder / "plain", ("first", "second"))
    verdict = utils.judge(trained.network, plain[1])
    for name, page in _drawn(plain, verdict, pages=True).items():
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
    (root / names[0] / f"{names[1]}.jpg").write_bytes(b"no image")
    update = {"data_path": root, "results_path": place / "results", "cache_path": None}
    trained = replace(trained, config=trained.config.model_copy(update=update), classes=names)
    return trained, trained.explain(tuple(pair))


def _drawn(named, verdict, pages) -> dict:
    """Draw all pages or all figures of a pair, by name. verdict: of the same images, for judging takes long."""
    trained, explanation = named
    verdict = replace(verdict, explanation=explanation)
    matches = utils.decompose(trained.network, explanation)
    if pages:
        grid = utils.grid(explanation, trained.network, verdict)
        return {"view": utils.view(explanation, verdict, matches), "grid": grid}
    folder, _, duplicates = load_images(trained.config)
    return {
        "figure": utils.figure(explanation, verdict),
        "images_figure": utils.images_figure(explanation),
        "grid_figure": utils.grid_figure(explanation),
        "methods_figure": utils.methods_figure({"first": verdict, "second": verdict}),
        "matches_figure": utils.matches_figure(matches),
        "duplicates_figure": utils.duplicates_figure(folder, duplicates),
    }


def _shown_incorrectly(project, trained, place, names, verdict, elements):
    """Say what is wrong with the first thing that shows the names in another way than as text."""
    named = trained, explanation = _named(project, trained, place, names)
    results = place / "results"
    for name, drawn in _drawn(named, verdict, pages=False).items():
        utils.saved(drawn, results / name)
        texts = [text.get_text() for text in drawn.findobj(Text)]
        formulas = [text for text in texts if is_math_text(text) and not text.startswith("$\\mathdefault")]
        problem = _file_named_badly(drawn.get_label(), results / name, ".png") or formulas
        if problem:
            return f"{name}: {problem}"
    for name, page in _drawn(named, verdict, pages=True).items():
        page.saved(results / name)
        problem = _file_named_badly(page.name, results / name, ".html") or _page_with_more(page.html, names)
        whole = Elements((results / name / f"{page.name}.html").read_bytes().decode("utf-8")).elements
        if problem or Elements(page.html).elements != elements[name] or {tag for tag, *_ in whole} - WHOLE:
            return f"{name}: {problem or 'other elements'}"
    printed = io.StringIO()
    with redirect_stdout(printed):
        print(trained, explanation.sentence(), explanation.names, utils.audit_images(*load_images(trained.config)))
        utils.explain_folder(trained, explanation.source.paths, results / "scores")
        splits_folder, pixels, _ = load_images(trained.config)
        utils.write_unreadable(splitting.list_unreadable(splits_folder, pixels.unreadable), results)
    for line in printed.getvalue().split("\n"):
        if not line.isprintable():
            return f"prints {line!r}"
    (row,) = _rows(results / "scores" / "scores.csv")
    if (row["image 1"], row["image 2"]) != explanation.names[0]:
        return f"{explanation.names[0]} are read back as {row}"
    problem = _listed_otherwise(results / "unreadable.csv", [str(place / "Data" / names[0] / f"{names[1]}.jpg")])
    missing = place / "Data" / names[0] / f"{names[1]} missing.png"
    outcome = attempt("a missing file", partial(trained.explain, (missing, missing)), must=REFUSED)
    if outcome.bad:
        problem = outcome.note
    return problem


def _file_named_badly(label, folder, ending):
    """Say what is wrong with the name of the only file of a folder."""
    if os.listdir(folder) != [f"{label}{ending}"]:
        return f"{label!r} was written as {os.listdir(folder)}"
    if not label.isprintable() or re.search(r"[/\\]", label) or len(os.fsencode(label)) > 200:
        return f"the name of a file is {label!r}"
    return None


def _page_with_more(html, names):
    """Say which name a page holds otherwise."""
    packed = re.search(r"unpack\('([^']*)'\)", html)[1]
    content = json.loads(zlib.decompress(base64.b64decode(packed)))
    if "images" not in content:
        content = content["pairs"][0]["view"]
    for image, name in zip(content["images"], names, strict=True):
        if name.isprintable() and (image["name"], image["class"]) != (f"{name}/{name}.png", name):
            return f"{name!r} became {image['name']!r} of {image['class']!r}"
    return None
