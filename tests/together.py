"""Several processes that work together as under torchrun, but forked, which saves its seconds of imports."""

import io
import os
import socket
from contextlib import redirect_stdout

import torch
from helpers import forked

from utils import device


def start_processes(processes, task, folder, *paths):
    """Start a task in several processes: tuples of a process and the pipe that it sends what it has printed to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [forked(_work, task, number, processes, port, folder, paths) for number in range(processes)]


def in_processes(processes, task, folder, *paths):
    """Do a task in several processes; returns what each prints and what it has computed, by the path of the config."""
    started = start_processes(processes, task, folder, *paths)
    printed = [pipe.recv() for _, pipe in started]
    for process, _ in started:
        process.join()
    return printed, [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(processes)]


def _work(task, number, processes, port, folder, paths, pipe):
    """Join the other processes as torchrun would have it, do the task for each config, and send what was printed."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes}
    for name, value in {**address, "RANK": number, "LOCAL_RANK": number}.items():
        os.environ[name] = str(value)
    device.FIRST = number == 0
    results = {}
    with redirect_stdout(io.StringIO()) as printed:
        for path in paths:
            results[str(path)] = task(path)
    torch.save(results, folder / f"{number}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    pipe.send(printed.getvalue())
