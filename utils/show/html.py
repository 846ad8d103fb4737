"""Pieces of HTML that stand by themselves: data, style and script inside, nothing loaded from anywhere."""

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

from ..files import write_text

LOSSLESS_SIDE = 160  # pixels: smaller images are kept to the bit
JPEG_QUALITY = 88
HERE = Path(__file__).parent
UNPACK = """async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body>{body}</body>
</html>
"""


@dataclass(frozen=True)
class Element:
    """A piece of a page, shown by a notebook cell, kept in its HTML export, and at work without a kernel.

    html: with its data, style and script. name: of its file, without ending. title: of its page, plain text.
    """

    html: str
    name: str
    title: str

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return self.title

    def saved(self, folder) -> "Element":
        """Write it as a page of its own to `folder`/<name>.html, whole, and hand it on, so that a cell shows it."""
        write_text(Path(folder) / f"{self.name}.html", page(self.title, self.html))
        return self


def page(title: str, body: str) -> str:
    """A whole HTML document that may load nothing. title: plain text. body: HTML."""
    return PAGE.format(title=escape(title), style=source("page.css"), body=body)


def component(mount: str, content: dict, name: str, title: str, scripts, styles, warning: str) -> Element:
    """An Element that the script function `mount(root, content)` fills, in a shadow root, where no style gets in.

    Args:
        mount: The name of the script function.
        content: JSON, which is compressed; what is in it is data to the script, never markup.
        name: Of the element's file, without ending.
        title: Of its page, plain text.
        scripts: Files of this folder.
        styles: Files of this folder.
        warning: What must be read before anything else, plain text: it stands above, also without scripts. "" where
            there is none.
    """
    data = packed(np.frombuffer(zlib.compress(json.dumps(content, allow_nan=False).encode(), 9), np.uint8))
    digest = hashlib.blake2b(data.encode(), digest_size=8).hexdigest()
    script = "\n".join(source(file) for file in scripts)
    style = script_json("\n".join(source(file) for file in styles))
    still = f"{escape(title)}: this view needs scripts; the figure beside it does not."
    said = f'<p role="alert"><strong>{escape(warning)}</strong></p>\n' if warning else ""
    html = (
        f'{said}<div data-view="{digest}" data-lm-suppress-shortcuts="true">{still}</div>\n'
        f"<script>(async () => {{\n{script}\n{UNPACK}"
        f"const style = {style};\nconst content = await unpack('{data}');\n"
        f"for (const host of document.querySelectorAll('[data-view=\"{digest}\"]')) {{\n"
        "  if (host.shadowRoot) continue;\n"
        "  const root = host.attachShadow({mode: 'open'});\n"
        "  root.append(Object.assign(document.createElement('style'), {textContent: style}));\n"
        f"  {mount}(root, content);\n"
        "}\n})()</script>"
    )
    return Element(html, name, title)


def source(file: str) -> str:
    """The text of a file of this folder."""
    return (HERE / file).read_text(encoding="utf-8")


def script_json(content) -> str:
    """JSON that may stand within a script element: nothing in it ends the element or opens a comment."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def packed(values: np.ndarray) -> str:
    """The bytes of an array, little-endian, in base64."""
    values = np.ascontiguousarray(values)
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def data_uri(image: np.ndarray, side: int) -> str:
    """An image, uint8 (H, W, 3) RGB, as a data URI: JPEG, shrunk to `side` pixels where its longer side is longer.

    PNG where it is not shrunk and no longer than LOSSLESS_SIDE.
    """
    scale = side / max(image.shape[:2])
    lossless = scale >= 1 and max(image.shape[:2]) <= LOSSLESS_SIDE
    if scale < 1:
        height, width = (max(round(scale * length), 1) for length in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    ending, options = (".png", []) if lossless else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    encoded = cv2.imencode(ending, image[..., ::-1], options)[1]
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
