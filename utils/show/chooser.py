"""Choose a pair in a notebook: two lists of images where a kernel runs, their names where none does."""

from functools import partial
from pathlib import Path

from ..data.splits import Splits


class PairChooser:
    """Two drop-down lists of the test images.

    Choose a pair, then run the cells below again: they use `pair`.

    Attributes:
        pair: Paths of the two chosen files.
    """

    def __init__(self, splits: Splits, pair: tuple[str, str]):
        self.names = {}
        for index in splits.test:
            path = splits.folder.paths[index]
            self.names[path] = Path(path).relative_to(splits.folder.root).as_posix()
        self.pair = (str(pair[0]), str(pair[1]))
        for path in self.pair:
            self.names.setdefault(path, path)  # from another folder, as `inference` in config.yml may name

    def __repr__(self):
        path1, path2 = self.pair
        return f"image 1: {self.names[path1]}\nimage 2: {self.names[path2]}"

    def _repr_mimebundle_(self, **kwargs):
        return self.lists()._repr_mimebundle_(**kwargs) | {"text/plain": repr(self)}

    def lists(self):
        """Make the two lists, a widget of ipywidgets."""
        from ipywidgets import Dropdown, VBox

        options = list(zip(self.names.values(), self.names.keys(), strict=True))
        boxes = []
        for number, path in enumerate(self.pair):
            box = Dropdown(options=options, value=path, description=f"image {number + 1}", layout={"width": "32em"})
            box.observe(partial(self._choose, number), names="value")
            boxes.append(box)
        return VBox(boxes)

    def _choose(self, number, change):
        pair = list(self.pair)
        pair[number] = change["new"]
        self.pair = tuple(pair)
