"""Parts of HTML pages that hold their data, style and script, and load nothing."""

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np

from ..files import write_text
from .drawing import shrunk

LOSSLESS_SIDE = 160  # pixels: images up to this size are stored as PNG


@dataclass(frozen=True)
class Element:
    """A part of a page. A notebook cell shows it, and its HTML export holds it; it works without a kernel."""

    html: str
    """With its data, style and script."""
    name: str
    """Of its file, without ending."""
    title: str
    """Of its page, plain text."""

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return self.title

    def saved(self, folder) -> "Element":
        """Write a page of its own to `folder`/<name>.html and return the element, so that a cell shows it."""
        write_text(Path(folder) / f"{self.name}.html", page(self.title, self.html))
        return self


def page(title: str, body: str) -> str:
    """Make a whole HTML document that may load nothing.

    Args:
        title: Plain text.
        body: HTML.
    """
    return filled("page.html", title=escape(title), style=text_of("page.css"), body=body)


def component(kind: str, content: dict, name: str, title: str, warning="") -> Element:
    """Make an Element that a script fills, inside a shadow root, which no style of the page reaches.

    Args:
        kind: "viewer", "grid", "plane" or "review": <kind>.js has the function `mount(root, content)`, <kind>.css its
            style. The script and style of the viewer come first, for what all share.
        content: JSON. It is data to the script, never markup.
        name: Of the element's file, without ending.
        title: Of its page, plain text.
        warning: Plain text that stands above the element, also where scripts do not run.
    """
    files = list(dict.fromkeys(["viewer", kind]))
    script = "\n".join(text_of(f"{file}.js") for file in files)
    style = "\n".join(text_of(f"{file}.css") for file in files)
    data = base64.b64encode(zlib.compress(json.dumps(content, allow_nan=False).encode(), 9)).decode()
    html = filled(
        "component.html",
        digest=hashlib.blake2b(data.encode(), digest_size=8).hexdigest(),
        title=escape(title),
        script=script,
        style=script_json(style),
        data=data,
        mount=f"mount{kind.capitalize()}",
    )
    if warning:
        html = f'<p role="alert"><strong>{escape(warning)}</strong></p>\n{html}'
    return Element(html, name, title)


def text_of(file: str) -> str:
    """Read a file of this folder."""
    return (Path(__file__).parent / file).read_text(encoding="utf-8")


def filled(file: str, **parts: str) -> str:
    """Fill the places `$name` of a file of this folder."""
    return Template(text_of(file)).substitute(parts)


def script_json(content) -> str:
    """Write JSON that may stand within a script element: nothing in it ends the element or opens a comment."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def packed(values: np.ndarray) -> str:
    """Encode the bytes of an array, little-endian, in base64."""
    values = np.ascontiguousarray(values)
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def data_uri(image: np.ndarray, side: int) -> str:
    """Encode an image, uint8 (H, W, 3) RGB, as a data URI.

    An image whose longer side is above `side` pixels is shrunk to it and stored as JPEG, as are all above
    LOSSLESS_SIDE; the others are PNG.
    """
    if max(image.shape[:2]) <= min(side, LOSSLESS_SIDE):
        kind, options = "png", []
    else:
        kind, options = "jpeg", [cv2.IMWRITE_JPEG_QUALITY, 88]
    encoded = cv2.imencode(f".{kind}", shrunk(image, side)[..., ::-1], options)[1]
    return encoded_uri(kind, encoded)


def encoded_uri(kind: str, encoded) -> str:
    """Write the bytes of an image file, "png" or "jpeg", as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
