"""Pages: pieces of HTML to look at and to hand on, which stand by themselves and load nothing."""

from utils.pages.chooser import PairChooser
from utils.pages.grid import grid
from utils.pages.html import Element
from utils.pages.plane import plane
from utils.pages.report import report
from utils.pages.viewer import view

__all__ = ["Element", "PairChooser", "grid", "plane", "report", "view"]
