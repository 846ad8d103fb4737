"""What all figures share: photographs, heatmaps over them, text that fits, and files that name what they show."""

import hashlib
import math
import re
import sys
import textwrap
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib import colormaps, font_manager, pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..data.reading import DataError, read_image
from ..data.transforms import to_pixels
from ..explanations.explanation import Explanation
from ..files import atomic, coded, printable, shortened
from ..trust.faithfulness import Verdict

# fonts of systems that write Chinese, Japanese or Korean, after Matplotlib's own
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei")
FONTS += ("PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Arial Unicode MS")
INSTALLED = {font.name for font in font_manager.fontManager.ttflist}
matplotlib.rcParams["font.family"] = ["DejaVu Sans", *(name for name in FONTS if name in INSTALLED)]
if "ipykernel" in sys.modules:
    pyplot.switch_backend(matplotlib.get_backend())  # loads what shows a figure below its cell

COLORMAP = "turbo"
OPACITY = 0.6  # of a heatmap
SOLID = 0.25  # from this share of the strongest evidence on, the colour alone tells the value; below, words do too
UNJUDGED = "Maps not judged."
PER_INCH = 10  # characters of a warning
LINE = 0.2  # inches of a line of it
SHOWN_PIXELS = 768  # longest side of an image in a figure
INLINE_DPI = 72  # of figures in notebooks, whose size it holds down; files have more
LINES = 4  # of a name, at most
NAME_LENGTH = 40  # characters of an image's name in the name of a file


def overlay(image, heatmap, opacity: float) -> np.ndarray:
    """A heatmap laid over an image: uint8 (H, W, 3) RGB.

    image: uint8 (H, W, 3) RGB. heatmap: (h, w) in [0, 1], resized to the image. Where the map is 0 the image is
    untouched; from SOLID on the colour covers it with `opacity`.
    """
    heatmap = cv2.resize(np.asarray(heatmap, np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    heatmap = heatmap.clip(0, 1)[..., None]
    colours = 255 * colormaps[COLORMAP](heatmap[..., 0])[..., :3]
    cover = opacity * (heatmap / SOLID).clip(max=1)
    return (image + cover * (colours - image)).round().astype(np.uint8)


def colour_table(name: str) -> np.ndarray:
    """The colours of a colour map of Matplotlib, from 0 to 1: uint8 (256, 3)."""
    return colormaps[name](np.arange(256), bytes=True)[:, :3]


def photo(path, value_range=None) -> np.ndarray:
    """An image file for a figure, uint8 (H, W, 3), shrunk to SHOWN_PIXELS where it is larger."""
    # what is shown was decoded before, within `max_megapixels`
    image = read_image(path, SHOWN_PIXELS, math.inf, value_range)
    height, width = image.shape[:2]
    scale = SHOWN_PIXELS / max(height, width)
    if scale >= 1:
        return image
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def photos(explanation: Explanation) -> list[np.ndarray]:
    """Both images of the first pair of an explanation, each uint8 (H, W, 3): their files, or else the pixels that were
    explained, as where channels are named or a format is one that the caller alone can read.
    """
    if explanation.source.paths and explanation.source.channels is None:
        try:
            return [photo(path, explanation.source.value_range) for path in explanation.source.paths[0]]
        except DataError:
            pass
    return list(pixels(explanation.images[0], explanation))


def pixels(images, explanation: Explanation) -> np.ndarray:
    """Images (N, C, H, W) of an explained pair, edited or not, for a figure: uint8 (N, H, W, 3).

    Where the explanation knows no normalisation and its values lie beyond [0, 1], their range becomes that of pixels.
    """
    images = images.float().cpu()
    if explanation.source.normalization is not None:
        values = to_pixels(images, explanation.source.normalization).movedim(-1, 1)  # uint8 (N, C, H, W)
        return _in_colour(values, explanation).float().round().byte().movedim(1, -1).numpy()
    low, high = _limits(explanation)
    values = ((_in_colour(images, explanation) - low) / (high - low)).clamp(0, 1)
    return (255 * values).round().byte().movedim(1, -1).numpy()


def _in_colour(images, explanation):
    """Images (..., C, H, W) of an explanation in three channels: those that it names, its own three, or grey."""
    if explanation.source.channels is not None:
        return images[..., list(explanation.source.channels), :, :]
    if images.shape[-3] == 3:
        return images
    grey = images.float().mean(dim=-3, keepdim=True)
    return grey.expand(*images.shape[:-3], 3, -1, -1)


def _limits(explanation):
    """The values that are black and white where no normalisation is known: 0 and 1, or what lies beyond."""
    shown = _in_colour(explanation.images, explanation)
    return min(shown.min().item(), 0), max(shown.max().item(), 1)


def shown_as(explanation: Explanation) -> str:
    """What `pixels` shows, in words: the size, which channels, and whether the values had to be stretched."""
    count, height, width = explanation.images.shape[-3:]
    words = f"as the network sees it: {height} x {width} pixels"
    if explanation.source.channels is not None:
        red, green, blue = explanation.source.channels
        words += f", channels {red}, {green} and {blue} of {count} in red, green and blue"
    elif count not in (1, 3):
        words += f", the mean of {count} channels"
    if explanation.source.normalization is not None or _limits(explanation) == (0, 1):
        return words
    return f"{words}, brightness stretched (no normalization is known)"


def remark(explanation: Explanation, image: int, heatmap) -> str:
    """What must be said of a map that is too weak to be seen; nothing of one that is drawn in full colour.

    Args:
        explanation: Of one pair.
        image: 0 or 1.
        heatmap: The map of that image as it is drawn, (h, w) in [0, 1].
    """
    strongest = float(heatmap.max())
    if strongest >= SOLID:
        return ""
    return f"at most {strongest:.1%}" if strongest > 0 else explanation.cause_of_blank(0, image)


def check_verdict(verdict: Verdict | None, explanation: Explanation):
    """Raises ValueError where the verdict is of another explanation."""
    if verdict is not None and not verdict.explanation.same_as(explanation):
        raise ValueError("the verdict is of another explanation: pass judge(network, explanation)")


def show(axes, image):
    """An image without ticks."""
    axes.imshow(image, interpolation="nearest")  # smoothing would invent detail, and triple the size of a notebook
    axes.set(xticks=[], yticks=[])


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, as it stands: a dollar sign opens no formula, and a character that
    no font here has is shown as its code.
    """
    lines = [textwrap.fill(line, width) for line in _drawable(printable(text)).splitlines()]
    return "\n".join(lines).replace("$", r"\$")


def named(name: str, width: int) -> str:
    """A name below or above an image: as `wrapped`, in LINES lines at most, its middle left out where it is longer."""
    return wrapped(shortened(name, LINES * width), width)


def _drawable(text):
    known = _characters()
    return "".join(letter if ord(letter) in known or letter == "\n" else coded(letter) for letter in text)


@cache
def _characters() -> set[int]:
    """All characters that the fonts of figures have."""
    paths = [font_manager.findfont(family) for family in matplotlib.rcParams["font.family"]]
    return {character for path in paths for character in font_manager.get_font(path).get_charmap()}


def heading(explanation: Explanation, what: str, width: int) -> str:
    """The lines above a figure of one pair: score and decision, what is shown, and both names."""
    name1, name2 = explanation.names[0]
    lines = [explanation.sentence(), what[0].upper() + what[1:], f"Image 1: {name1}, image 2: {name2}"]
    return wrapped("\n".join(lines), width)


def file_name(kind: str, explanation: Explanation, *details: str) -> str:
    """The name of the file of a figure: what it is, decision, both images, details, and a digest of what is shown."""
    stems = [re.sub(r"[^\w.-]+", "_", Path(name).stem)[:NAME_LENGTH] for name in explanation.names[0]]
    digest = hashlib.blake2b(digest_size=4)
    digest.update(repr((explanation.source.paths, explanation.description, explanation.threshold)).encode())
    digest.update(explanation.images.float().cpu().contiguous().numpy())
    if explanation.source.channels is not None:
        digest.update(repr(explanation.source.channels).encode())
    details = [re.sub(r"[^\w.+-]+", "_", detail) for detail in details if detail]
    return "_".join([kind, explanation.decision(), *stems, *details, digest.hexdigest()])


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, which pyplot does not know: what it knows, all threads share."""
    return Figure(figsize=(width, height), layout="constrained")


def nothing(text: str, name: str, warning=""):
    """A figure of one sentence, where there is nothing to draw."""
    text = wrapped(text, 8 * PER_INCH)
    lines = wrapped(warning, 8 * PER_INCH).count("\n") + text.count("\n") + 2
    drawn = new_figure(8, 0.3 * lines)
    axes = drawn.subplots()
    axes.set_axis_off()
    axes.text(0, 0.5, text, va="center")
    return closed(drawn, name, warning)


def closed(figure, name: str, warning=""):
    """Return a finished figure, with the name of its file as its label.

    Every figure of what a network says ends here with the warning of its explanation: it stands on top, unless words of
    the figure hold it already.
    """
    if warning and _words(wrapped(warning, 80)) not in _words(*(text.get_text() for text in figure.findobj(Text))):
        width = int(PER_INCH * figure.get_figwidth())
        above = wrapped(warning, width)
        figure.suptitle("\n".join(filter(None, [above, figure.get_suptitle()])), fontsize=10)
        figure.set_figheight(figure.get_figheight() + LINE * len(above.splitlines()))
    figure.set_label(name)
    figure.set_dpi(INLINE_DPI)
    return figure


def _words(*texts):
    """Texts in one line."""
    return " ".join(" ".join(texts).split())


def saved(figure, folder):
    """Write a figure to `folder`/<its label>.png, whole, and hand it on, so that a cell shows it."""
    with atomic(Path(folder) / f"{figure.get_label()}.png") as file:
        figure.savefig(file, format="png", dpi=120)
    return figure
