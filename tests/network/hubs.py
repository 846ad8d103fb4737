"""The cache of the hub as tests fill it, without network."""

from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import pytest

from utils import vision
from utils.network import backbones


@contextmanager
def offline(cache: Path, monkeypatch):
    """Set the folder of the hub's cache and forget what was fetched before; nothing is fetched inside."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    forget()
    yield
    forget()


def forget():
    """Forget what this process has fetched from the hub."""
    backbones.hub_file.cache_clear()
    vision.hub_arguments.cache_clear()


def plant(cache: Path, repository: str) -> Path:
    """Return the folder, made empty, of the files that the cache has of a repository."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc"


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code in the file was executed",))
