import errno
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import ENVIRONMENT, ROOT

from utils import __main__ as commands
from utils import explain_folder
from utils.data import sample as shapes
from utils.data.sample import ensure_sample, make_sample
from utils.files import ExistsError, FileError, atomic, check_archive, whole_folders, write_text
from utils.train.runs import CheckpointError, claimed

THREADS = 4
LONG = 200_000  # bytes, more than one write of a file's buffer


def test_a_file_appears_whole_in_a_new_folder(tmp_path):
    with atomic(tmp_path / "new" / "file") as file:
        file.write(b"half")
        assert not (tmp_path / "new" / "file").exists()
        file.write(b" and half")
    assert (tmp_path / "new" / "file").read_bytes() == b"half and half"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path, error):
    write_text(tmp_path / "file", "größer")

    def fail():
        with atomic(tmp_path / "file") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "größer"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    with atomic(tmp_path / "file") as first:
        first.write(b"first")
        with atomic(tmp_path / "file") as second:
            second.write(b"second")
        assert (tmp_path / "file").read_bytes() == b"second"
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _write_and_read(path, letter):
    for _ in range(20):
        with atomic(path) as file:
            file.write(letter * (LONG // 2))
            file.write(letter * (LONG // 2))
        content = path.read_bytes()
        assert len(content) == LONG
        assert len(set(content)) == 1  # of a single writer


def test_threads_that_write_one_path_and_read_it_find_whole_files(tmp_path):
    letters = [bytes([number]) for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(_write_and_read, tmp_path / "file", letter) for letter in letters]
    for job in jobs:
        job.result()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pair_twice_in_a_file_of_pairs(trained, tiny_data, tmp_path):
    pair = tiny_data / "blue" / "blue_0.png", tiny_data / "red" / "red_0.png"
    table = explain_folder(trained, [pair] * 8, tmp_path / "out")
    assert len(table) == 8
    assert len(table["files"].unique()) == 1
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(names) == 4, names  # a picture, maps, the scores and what they were made by


def test_what_a_killed_process_left_is_deleted_with_the_next_claim(tmp_path):
    code = "import os; from utils.files import atomic\nwith atomic('best.pt') as file: os._exit(1)"
    environment = os.environ | ENVIRONMENT
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    (killed,) = tmp_path.iterdir()
    (tmp_path / "best.pt").write_bytes(b"")
    with claimed(tmp_path):
        assert not killed.exists()
        assert (tmp_path / "best.pt").exists()


def test_an_archive_that_is_cut_off_or_changed_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.arange(10_000)}, path)
    check_archive(path)
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    for damaged in (content[:-100], content[: len(content) // 2], b"", bytes(changed)):
        path.write_bytes(damaged)
        with pytest.raises(zipfile.BadZipFile):
            check_archive(path)


def test_a_full_disk_is_named_with_its_cure(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", fail)
    with pytest.raises(
        FileError, match=r"file cannot be written: No space left on device\. Make room and run the same"
    ):
        write_text(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_another_process_makes_meanwhile_stay_as_they_are(tmp_path):
    target = tmp_path / "Butterflies"

    def make():
        with whole_folders({"a": target}, "rename it") as made:
            (made / "a" / "mine").write_text("mine")
            target.mkdir()
            (target / "others").write_text("others")

    with pytest.raises(ExistsError, match="Butterflies exists: rename it"):
        make()
    assert [path.name for path in target.iterdir()] == ["others"]
    assert [path.name for path in tmp_path.iterdir()] == ["Butterflies"]


def test_folders_for_which_there_is_no_place(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=r"file cannot be written: .*\. Set another folder"):
        make_sample(tmp_path / "file" / "Butterflies", 1)
    make_sample(tmp_path / "folder" / "Butterflies", 1)


def test_a_sample_that_is_there_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "Butterflies").mkdir()
    monkeypatch.setattr(sys, "argv", ["utils", "sample", str(tmp_path / "Butterflies")])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    message = f"{tmp_path / 'Butterflies'} exists: delete or rename it to make the sample again."
    assert str(caught.value).strip() == message


def test_of_two_threads_one_trains_in_a_folder(tmp_path):
    def other():
        with claimed(tmp_path):
            pass

    with ThreadPoolExecutor(1) as pool:
        with claimed(tmp_path), claimed(tmp_path):  # the same thread may do so twice
            refused = pool.submit(other).exception()
        pool.submit(other).result()
    assert isinstance(refused, CheckpointError)
    assert f"process {os.getpid()} " in str(refused)


def test_all_text_files_are_utf_8():
    """As ruff finds it: no file is opened with the encoding of the machine."""
    command = [sys.executable, "-m", "ruff", "check", "--preview", "--isolated", "--select", "PLW1514", "utils"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_the_projects_sample_is_made_wherever_the_program_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes, "PROJECT", tmp_path / "project")
    made = []
    monkeypatch.setattr(shapes, "make_sample", made.append)
    ensure_sample(tmp_path / "elsewhere" / "Data" / "Butterflies")
    assert made == []
    ensure_sample(tmp_path / "project" / "Data" / "Butterflies")
    assert made == [tmp_path / "project" / "Data" / "Butterflies"]


def test_a_sample_that_another_process_makes_meanwhile_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = tmp_path / "Data" / "Butterflies"

    def draw(*_):
        (sample / "others").mkdir(parents=True, exist_ok=True)
        return [np.zeros((2, 2), np.uint8)] * 2

    monkeypatch.setattr(shapes, "draw", draw)
    ensure_sample(sample)
    assert [path.name for path in sample.iterdir()] == ["others"]
