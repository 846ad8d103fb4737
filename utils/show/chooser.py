"""Choose a pair in a notebook: two fields with previews where a kernel runs, the names of the files where none does."""

import tempfile
from functools import partial
from pathlib import Path

import cv2

from ..data.reading import DataError, read_image
from ..data.splits import Splits
from .drawing import shrunk

PREVIEW = 200  # pixels along the longer side


class PairChooser:
    """Two fields: type a class or a file of the test images, or the path of any other image, or upload one.

    Then run the cells below again: they use `pair`, which can be set in a cell too.

    Attributes:
        pair: Paths of the two chosen files.
    """

    def __init__(self, splits: Splits, pair: tuple[str, str]):
        self.paths = {}  # by the name that is shown: class/file
        for index in splits.test:
            path = splits.folder.paths[index]
            self.paths[Path(path).relative_to(splits.folder.root).as_posix()] = path
        self.value_range = splits.pixels.value_range
        self.pair = (str(pair[0]), str(pair[1]))

    def __repr__(self):
        path1, path2 = self.pair
        return f"image 1: {self.name_of(path1)}\nimage 2: {self.name_of(path2)}"

    def _repr_mimebundle_(self, **kwargs):
        return self.fields()._repr_mimebundle_(**kwargs) | {"text/plain": repr(self)}

    def name_of(self, path: str) -> str:
        """Return class/file of a test image; the path itself of any other."""
        for name, known in self.paths.items():
            if known == path:
                return name
        return path

    def choose(self, number: int, name: str) -> bytes:
        """Choose image 0 or 1 by its class/file, or by the path of any file; return its preview.

        Raises:
            DataError: It is no image that can be read.
        """
        path = self.paths.get(name, name)
        preview = self.preview(path)  # refused now, while the field is in view
        pair = list(self.pair)
        pair[number] = path
        self.pair = tuple(pair)
        return preview

    def preview(self, path: str) -> bytes:
        """Return an image as a small JPEG. Raises DataError where it cannot be read."""
        pixels = shrunk(read_image(path, PREVIEW, value_range=self.value_range), PREVIEW)
        return cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()

    def fields(self):
        """Make the two fields, a widget of ipywidgets."""
        from ipywidgets import HBox

        return HBox([self._field(0), self._field(1)])

    def _field(self, number):
        from ipywidgets import Combobox, FileUpload, Image, Label, VBox

        value = self.name_of(self.pair[number])
        settings = {"ensure_option": False, "continuous_update": False, "layout": {"width": "24em"}}
        box = Combobox(options=tuple(self.paths), value=value, description=f"image {number + 1}", **settings)
        picture = Image(value=self.preview(self.pair[number]), format="jpeg", layout={"max_width": f"{PREVIEW}px"})
        upload = FileUpload(accept="image/*")
        message = Label()
        box.observe(partial(self._chosen, number, picture, message), names="value")
        upload.observe(partial(_uploaded, box), names="value")
        return VBox([box, upload, picture, message])

    def _chosen(self, number, picture, message, change):
        try:
            picture.value = self.choose(number, change["new"])
        except DataError as error:
            message.value = str(error)
            return
        message.value = "Now run the cells below again."


def _uploaded(box, change):
    """Write an uploaded file to a temporary folder, and put its path into the field."""
    for file in change["new"]:
        path = Path(tempfile.mkdtemp(prefix="uploaded")) / Path(file["name"]).name
        path.write_bytes(file["content"])
        box.value = str(path)
