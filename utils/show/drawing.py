"""What all figures share: photographs, heatmaps over them, text that fits, and names of files."""

import hashlib
import io
import math
import re
import textwrap
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from threading import RLock

import cv2
import numpy as np
import torch
from matplotlib import colormaps, font_manager, style
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from ..data.reading import DataError, read_image
from ..explanations.explanation import Explanation
from ..files import atomic, coded, printable, shortened
from ..trust.faithfulness import Verdict
from .words import SOLID, is_believed, remark, sentence_of, title_of

STYLE = Path(__file__).with_name("figures.mplstyle")
# fonts of systems that write Chinese, Japanese or Korean, after Matplotlib's own
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei")
FONTS += ("PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Arial Unicode MS")
COLORMAP = "turbo"
OPACITY = 0.6  # of a heatmap
TITLE = 60  # characters of a line of a title
PER_INCH = 10  # characters of an inch of text
LINE = 0.2  # inches of a line of text
SHOWN_PIXELS = 768  # longest side of an image in a figure
INLINE_DPI = 72  # of figures in notebooks
RETINA = 1.5  # pixels of a figure in a notebook for each pixel of a plain screen; with 2, notebooks take 3 MB
PAPER = 7.0  # inches of the text of a paper of two columns
SAVED_DPI = 144  # of PNG files
FORMATS = ("png", "pdf", "svg")
STRONGEST = 0.1  # share of the pixels that a contour encloses
GREY = "gray"  # colours of maps that are not better than chance
LINES = 4  # of a name, at most
NAME_LENGTH = 40  # characters of an image's name in the name of a file
_lock = RLock()  # around Matplotlib's settings, which all threads share


@contextmanager
def _styled():
    """Draw in the style of STYLE, in fonts that are installed; Matplotlib's settings are afterwards what they were."""
    with _lock, style.context([STYLE, {"font.family": _fonts()}]):
        yield


def styled(draw):
    """Decorate a function that makes a figure: it draws in the style of STYLE."""

    @wraps(draw)
    def draw_in_style(*arguments, **settings):
        with _styled():
            return draw(*arguments, **settings)

    return draw_in_style


class Drawing(Figure):
    """A figure that pyplot does not know, because all threads share what it knows. A notebook cell shows it once."""

    def __init__(self, width: float, height: float):
        """Make an empty figure of this size in inches."""
        super().__init__(figsize=(width, height), layout="constrained")

    def savefig(self, *arguments, **settings):
        """Write the figure to a file, as Matplotlib does, in the style of STYLE: tick labels are made only then."""
        with _styled():
            super().savefig(*arguments, **settings)

    def _repr_jpeg_(self):  # half as large as PNG, so that executed notebooks stay small
        """Return the figure for a cell at RETINA times its resolution, and the size that it has on the screen."""
        file = io.BytesIO()
        self.savefig(file, format="jpeg", dpi=RETINA * INLINE_DPI, bbox_inches="tight", pil_kwargs={"quality": 58})
        width, height = Image.open(file).size
        return file.getvalue(), {"width": round(width / RETINA), "height": round(height / RETINA)}


def overlay(image, heatmap, opacity: float, colours=COLORMAP) -> np.ndarray:
    """Lay a heatmap over an image.

    Args:
        image: uint8 (H, W, 3) RGB.
        heatmap: (h, w) in [0, 1], resized to the image.
        opacity: Of the colour where the map is at least SOLID; below, it fades, and at 0 the image is unchanged.
        colours: The name of a colour map of Matplotlib.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    heatmap = cv2.resize(np.asarray(heatmap, np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    heatmap = heatmap.clip(0, 1)
    mixed = 255 * colormaps[colours](heatmap)[..., :3]
    cover = opacity * (heatmap / SOLID).clip(max=1)[..., None]
    return (image + cover * (mixed - image)).round().astype(np.uint8)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Shrink an image (H, W, 3) to `side` pixels along its longer side; a smaller one is returned as it is."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    height = max(round(scale * image.shape[0]), 1)
    width = max(round(scale * image.shape[1]), 1)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def photo(path, value_range=None) -> np.ndarray:
    """Read an image file for a figure: uint8 (H, W, 3), its longer side at most SHOWN_PIXELS."""
    # `max_megapixels` was checked when the image was decoded for the network
    return shrunk(read_image(path, SHOWN_PIXELS, math.inf, value_range), SHOWN_PIXELS)


def photos(explanation: Explanation) -> list[np.ndarray]:
    """Return both images of the first pair, each uint8 (H, W, 3), at the resolution of their files.

    Where there are no files that can be read here, or channels are named, these are the pixels that were explained.
    """
    source = explanation.source
    if source.paths and source.channels is None:
        try:
            return [photo(path, source.value_range) for path in source.paths[0]]
        except DataError:  # a format that only the caller can read
            pass
    return list(pixels(explanation.images[0], explanation))


def pixels(images, explanation: Explanation) -> np.ndarray:
    """Return images (N, C, H, W) of an explained pair, edited or not, for a figure: uint8 (N, H, W, 3).

    Where no normalisation is known and values lie beyond [0, 1], their range is stretched to that of pixels.
    """
    images = images.float().cpu()
    normalization = explanation.source.normalization
    if normalization is None:
        low, high = _limits(explanation)
    else:
        low, high = 0, 1
        images = images * torch.tensor(normalization.std)[:, None, None]
        images = images + torch.tensor(normalization.mean)[:, None, None]
    values = (_in_colour(images, explanation.source.channels) - low) / (high - low)
    return (255 * values.clamp(0, 1)).round().byte().movedim(1, -1).numpy()


def _in_colour(images, channels):
    """Images (..., C, H, W) in three channels: the named ones, their own three, or grey."""
    if channels is not None:
        return images[..., list(channels), :, :]
    if images.shape[-3] == 3:
        return images
    grey = images.float().mean(dim=-3, keepdim=True)
    return grey.expand(*images.shape[:-3], 3, -1, -1)


def _limits(explanation):
    """The values of black and white without a normalisation: 0 and 1, or what lies beyond."""
    shown = _in_colour(explanation.images, explanation.source.channels)
    return min(shown.min().item(), 0), max(shown.max().item(), 1)


def shown_as(explanation: Explanation) -> str:
    """Describe what `pixels` shows: the size, which channels, and whether the values had to be stretched."""
    count, height, width = explanation.images.shape[-3:]
    source = explanation.source
    words = f"as the network sees it: {height} x {width} pixels"
    if source.channels is not None:
        words += ", channels {}, {} and {} of {} in red, green and blue".format(*source.channels, count)
    elif count not in (1, 3):
        words += f", the mean of {count} channels"
    if source.normalization is None and _limits(explanation) != (0, 1):
        words += ", brightness stretched (no normalization is known)"
    return words


def show(axes, image):
    """Show an image without ticks."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def show_map(axes, photograph, pair: Explanation, image: int, opacity: float, kind="factual", colours=COLORMAP) -> str:
    """Show a map of image 0 or 1 of a pair over its photograph; return the remark on it.

    With an opacity of 0, the strongest tenth of the map is outlined instead, unless the map is faint.
    """
    heatmap = getattr(pair, kind)[0, image].cpu().numpy()
    show(axes, overlay(photograph, heatmap, opacity, colours))
    if opacity == 0 and heatmap.max() >= SOLID:
        outline = cv2.resize(heatmap, photograph.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        level = max(np.quantile(outline, 1 - STRONGEST), np.finfo(np.float32).tiny)
        for colour, width in (("black", 3.5), ("white", 2)):
            axes.contour(outline, [level], colors=colour, linewidths=width)
    return remark(pair, image, heatmap)


def colour_bar(figure, label="share of the image's strongest evidence", colours=COLORMAP, **place):
    """Draw the scale of the colours of heatmaps."""
    figure.colorbar(ScalarMappable(cmap=colours), label=label, **place)


def colours_of(verdict: Verdict | None, index=0) -> str:
    """Return the name of the colour map of the maps of a pair: grey where they are not better than chance."""
    return COLORMAP if is_believed(verdict, index) else GREY


def check_verdict(verdict: Verdict | None, explanation: Explanation):
    """Raise ValueError where the verdict is of another explanation."""
    if verdict is not None and not verdict.explanation.same_as(explanation):
        raise ValueError("the verdict is of another explanation: pass judge(network, explanation)")


def wrapped(text: str, width: int) -> str:
    """Break text into lines of at most `width` characters.

    A dollar sign opens no formula, and a character that no font here has is shown as its code.
    """
    known = _characters()
    drawable = "".join(letter if ord(letter) in known else coded(letter) for letter in printable(text))
    lines = [textwrap.fill(line, width) for line in drawable.splitlines()]
    return "\n".join(lines).replace("$", r"\$")


def named(name: str, width: int) -> str:
    """Break a name as `wrapped` does, into at most LINES lines, without its middle where it is longer."""
    return wrapped(shortened(name, LINES * width), width)


@cache
def _fonts() -> list[str]:
    """Matplotlib's own font and those of FONTS that are installed."""
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *[name for name in FONTS if name in installed]]


@cache
def _characters() -> set[int]:
    """The line end, and all characters that the fonts of figures have."""
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in _fonts()]
    return {ord("\n")}.union(*[font.get_charmap() for font in fonts])


def set_texts(figure, title: str, caption: str):
    """Write a title of short lines above a figure, or a part of one, and a caption in small type below it."""
    width = int(PER_INCH * figure.bbox.width / figure.dpi)
    lines = [shortened(line, min(TITLE, width)) for line in title.splitlines()]
    figure.suptitle(wrapped("\n".join(lines), TITLE))
    figure.supxlabel(wrapped(caption, round(1.25 * width)), ma="left")


def finished_pair(figure, pair: Explanation, kind: str, title: str, caption: str, *details: str):
    """Finish a figure of one pair: title, caption, and the name of its file.

    Args:
        figure: The figure.
        pair: Of one pair.
        kind: What the figure is, the beginning of the name of its file.
        title: What is shown, in one line below the decision.
        caption: All else that must be known of it.
        details: Further parts of the name of the file.
    """
    name1, name2 = pair.names[0]
    text = f"{sentence_of(pair)} {caption}\nImage 1: {name1}, image 2: {name2}"
    set_texts(figure, f"{title_of(pair)}\n{title}", text)
    return finished(figure, file_name(kind, pair, *details), pair.source.warning)


def file_name(kind: str, explanation: Explanation, *details: str) -> str:
    """Name the file of a figure: what it is, decision, both images, details, and a digest of what is shown."""
    parts = [kind, explanation.decision()]
    for name in explanation.names[0]:
        parts.append(re.sub(r"[^\w.-]+", "_", Path(name).stem)[:NAME_LENGTH])
    for detail in filter(None, details):
        parts.append(re.sub(r"[^\w.+-]+", "_", detail))
    source = explanation.source
    shown = source.paths, source.channels, explanation.description, explanation.threshold
    digest = hashlib.blake2b(repr(shown).encode(), digest_size=4)
    digest.update(explanation.images.float().cpu().contiguous().numpy())
    return "_".join([*parts, digest.hexdigest()])


@styled
def nothing(text: str, name: str, warning="") -> Drawing:
    """Make a figure of one sentence, where there is nothing to draw."""
    text = wrapped(text, 8 * PER_INCH)
    figure = Drawing(8, 0.3 * (len(text.splitlines()) + 1))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0, 0.5, text, va="center")
    return finished(figure, name, warning)


def finished(figure, name: str, warning="") -> Drawing:
    """Return a finished figure, with the name of its file as its label, and the warning of its explanation on top.

    Every figure of what a network says ends here.
    """
    if warning:
        above = wrapped(warning, int(PER_INCH * figure.get_figwidth()))
        figure.suptitle(f"{above}\n{figure.get_suptitle()}".strip())
        figure.set_figheight(figure.get_figheight() + LINE * len(above.splitlines()))
    figure.set_label(name)
    figure.set_dpi(INLINE_DPI)
    return figure


def saved(figure, folder, format="png"):
    """Write a figure to `folder`/<its label>.<format>, and return it, so that a cell shows it.

    Args:
        figure: A figure of this package.
        folder: Where to, made if necessary.
        format: "png", or "pdf" or "svg" for papers: PAPER inches wide at most, without captions, which are text there.

    Raises:
        ValueError: Another format.
        FileError: The file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"format: {format!r} is refused: it must be one of {', '.join(FORMATS)}")
    with atomic(Path(folder) / f"{figure.get_label()}.{format}") as file:
        if format == "png":
            figure.savefig(file, format=format, dpi=SAVED_DPI)
        else:
            with _for_paper(figure):
                figure.savefig(file, format=format, bbox_inches="tight")
    return figure


@contextmanager
def _for_paper(figure):
    """Make a figure as wide as the text of a paper, where its type stays as large as it is, and leave out captions."""
    width, height = figure.get_size_inches()
    captions = {}
    for part in _parts(figure):
        captions[part] = part.get_supxlabel()
        part.supxlabel("")
    scale = min(PAPER / width, 1)
    figure.set_size_inches(scale * width, scale * height)
    try:
        yield
    finally:
        figure.set_size_inches(width, height)
        for part, caption in captions.items():
            part.supxlabel(caption)


def _parts(figure):
    """A figure and all its subfigures."""
    parts = [figure]
    for part in figure.subfigs:
        parts += _parts(part)
    return parts
