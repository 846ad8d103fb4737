"""Choosing a pair in a notebook: two lists of images where a kernel runs, the names alone where none does."""

import os
from pathlib import Path

from ..data.splits import Splits

EXECUTING = "SIAMESE_EXECUTING"  # set where a notebook is executed with no one looking on: lists would stay behind dead


class PairChooser:
    """Two drop-down lists of the test images. `pair` has the two files that are chosen now.

    The cells below take `pair` when they are run: choose, then run them again.
    """

    def __init__(self, splits: Splits, pair: tuple[str, str]):
        root = splits.folder.root
        paths = [splits.folder.paths[index] for index in splits.test]
        self.names = {path: Path(path).relative_to(root).as_posix() for path in paths}
        for path in pair:
            self.names.setdefault(str(path), str(path))  # of elsewhere, as `inference` in config.yml may say
        self.pair = tuple(str(path) for path in pair)

    def __repr__(self):
        name1, name2 = (self.names[path] for path in self.pair)
        return f"image 1: {name1}\nimage 2: {name2}"

    def _repr_mimebundle_(self, **kwargs):
        text = {"text/plain": repr(self)}
        if os.environ.get(EXECUTING):
            return text
        return self.lists()._repr_mimebundle_(**kwargs) | text

    def lists(self):
        """The two lists as a widget of ipywidgets."""
        from ipywidgets import Dropdown, VBox

        options = [(name, path) for path, name in self.names.items()]
        boxes = []
        for number, path in enumerate(self.pair):
            box = Dropdown(options=options, value=path, description=f"image {number + 1}", layout={"width": "32em"})
            box.observe(lambda change, number=number: self._choose(number, change["new"]), names="value")
            boxes.append(box)
        return VBox(boxes)

    def _choose(self, number, path):
        pair = list(self.pair)
        pair[number] = path
        self.pair = tuple(pair)
