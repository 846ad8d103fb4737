"""Pages: pieces of HTML to look at and to hand on, which stand by themselves and load nothing."""

from utils.pages.html import Element
from utils.pages.viewer import view

__all__ = ["Element", "view"]
