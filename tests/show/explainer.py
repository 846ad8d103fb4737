"""What each of the processes of test_explain_together.py does; `path` is of the config, in the folder of a test."""

import importlib
import os
import signal
import sys
from unittest.mock import patch

import torch
from torch import nn

from utils import Cut, FromFiles, explain_folder, gallery, load_config, load_trained, read_image
from utils.__main__ import main
from utils.device import rank
from utils.files import UserError
from utils.show import folder
from utils.show import identified as identified_module

gallery_module = importlib.import_module("utils.search.gallery")  # `utils.gallery` is the function


def load(path):
    return torch.from_numpy(read_image(path)).permute(2, 0, 1) / 127.5 - 1


def files(seed=0) -> FromFiles:
    """A module that nobody trained, on files."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FromFiles(Cut(module, "1"), load, threshold=0.3)


def written():
    """A patch of what writes the files of a pair, and the names of the pairs that it has written."""
    names, write = [], folder._write

    def noted(stem, *content):
        write(stem, *content)
        names.append(stem.name)

    return patch.object(folder, "_write", noted), names


def by_command(path):
    """Run the command; returns the pairs that this process has written."""
    sys.argv = ["utils", "explain", "--config", str(path), "--pairs", str(path.parent / "pairs.csv")]
    sys.argv += ["--out", str(path.parent / "out")]
    patched, names = written()
    with patched:
        main()
    return sorted(names)


def identified(path):
    """Run the command; returns how many pages this process has written."""
    data_path = str(load_config(path).data_path)
    sys.argv = ["utils", "identify", data_path, "--gallery", data_path, "--config", str(path)]
    sys.argv += ["--out", str(path.parent / "out")]
    pages = []
    with patch.object(identified_module, "_page", lambda *content: pages.append(content) or "page"):
        main()
    return len(pages)


def embedded(path):
    """The gallery of a trained network, and how many images this process has embedded, and how often it has written."""
    trained = load_trained(load_config(path))
    embed, write = gallery_module._embed, gallery_module._write_stored
    counts = [0, 0]

    def counted(trained, paths):
        counts[0] += len(paths)
        return embed(trained, paths)

    def written_once(*content):
        counts[1] += 1
        write(*content)

    with patch.object(gallery_module, "_embed", counted), patch.object(gallery_module, "_write_stored", written_once):
        found = [gallery(trained, trained.config.data_path).embeddings for _ in range(2)]
    return {"counts": counts, "embeddings": [torch.from_numpy(embeddings) for embeddings in found]}


def in_script(path):
    """As a script would: the maps of any module and a gallery, which each process then has."""
    patched, names = written()
    with patched, patch.object(folder, "BATCH", 2):
        table = explain_folder(files(), path.parent / "pairs.csv", path.parent / "out", judged=True)
    images = gallery(files(), path.parent / "images")
    embeddings = torch.from_numpy(images.embeddings)
    found = {"paths": list(images.paths), "unreadable": images.unreadable, "embeddings": embeddings}
    return {"names": sorted(names), "table": table.to_csv(index=False), **found}


def killed(path, victim):
    """One process is killed as it begins its second batch; returns by what error the other one ends."""
    explained, calls = folder._explained, []

    def deadly(*arguments):
        calls.append(arguments)
        if rank() == victim and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return explained(*arguments)

    with patch.object(folder, "BATCH", 2), patch.object(folder, "_explained", deadly):
        return message_of(files(), path)


def first_killed(path):
    return killed(path, 0)


def second_killed(path):
    return killed(path, 1)


def of_other_networks(path):
    return message_of(files(seed=int(os.environ["RANK"])), path)


def without_pairs(path):
    """Only the first process reads the list of pairs."""
    (path.parent / "pairs.csv").write_text("image1,image2\n")
    return message_of(files(), path)


def message_of(network, path) -> str:
    try:
        explain_folder(network, path.parent / "pairs.csv", path.parent / "out")
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
