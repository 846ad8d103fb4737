import io
import os
import shutil
import sys

import nbformat
import pytest
import yaml

from utils import __main__ as commands
from utils.config import CONFIG_VARIABLE
from utils.files import UserError, prepare_output, printable

ENCODINGS = ("cp1252", "ascii", "cp437")  # of pipes on Windows, of old servers, of old consoles
FOREIGN = "花 ж"  # of which none of these has a character


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 一 🌹 👨‍👩‍👧.png", "Größe 一 🌹 👨‍👩‍👧.png"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # right-to-left override: shown as exe.png
        (os.fsdecode(b"\xff.png"), r"\udcff.png"),
    ],
)
def test_what_is_not_meant_to_be_seen_is_shown_as_its_code(text, shown):
    assert printable(text) == shown
    assert str(UserError(text)) == shown
    shown.encode()


@pytest.fixture
def console(monkeypatch):
    """console(encoding) has what is printed from now on go to a console of that encoding; it returns a function that
    returns what came there.
    """

    def start(encoding):
        content = io.BytesIO()
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # other tests may have started a notebook
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding, write_through=True))
        prepare_output()
        return lambda: content.getvalue().decode(encoding)

    return start


@pytest.fixture
def run_command(settings, tiny_data, tmp_path, monkeypatch):
    """run_command(name, *arguments) runs a command, here, on the tiny images with names that consoles lack."""
    root = tmp_path / FOREIGN
    shutil.copytree(tiny_data, root)
    (root / "red").rename(root / FOREIGN)
    (root / "blue" / "blue_0.png").rename(root / "blue" / f"{FOREIGN}.png")
    (root / "blue" / f"broken {FOREIGN}.png").write_bytes(b"no image")
    shutil.copy(root / "green" / "green_0.png", root / "green" / os.fsdecode(b"twice \xff.png"))
    settings |= {"data_path": str(root), "explanation": {"layer": "last", "steps": 2}}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", ["utils", name, "--config", str(tmp_path / "config.yml"), *arguments])
        commands.main()

    return run


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_characters_that_a_console_has_are_printed_as_they_are_and_others_as_their_codes(console, encoding):
    printed = console(encoding)
    text = "gro\u00df A 花"
    print(text, end="")
    assert printed() == text.encode(encoding, "backslashreplace").decode(encoding)
    assert printed().endswith("A \\u82b1")


def test_names_that_are_no_text_are_printed_where_the_system_has_no_locale(monkeypatch):
    content = io.BytesIO()  # Python's own choice there is to hand such bytes on
    stream = io.TextIOWrapper(content, "ascii", errors="surrogateescape", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_output()
    print(os.fsdecode(b"\xff"), "花", end="")
    assert content.getvalue() == rb"\udcff \u82b1"


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_stream_without_an_encoding_stays_as_it_is(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_output()
    assert sys.stdout is stream


def test_the_audit_prints_names_that_the_console_lacks(console, run_command):
    printed = console("utf-8")
    run_command("audit")
    whole = printed()
    assert f"broken {FOREIGN}.png" in whole
    for encoding in ENCODINGS:
        printed = console(encoding)
        run_command("audit")
        assert printed() == whole.encode(encoding, "backslashreplace").decode(encoding)


def test_training_and_explaining_print_names_that_the_console_lacks(console, run_command, tmp_path):
    printed = console("cp1252")
    run_command("train")
    assert r"broken \u82b1 \u0436.png" in printed()
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"image1,image2\n{FOREIGN}/{FOREIGN}/red_0.png,{FOREIGN}/blue/{FOREIGN}.png\n", encoding="utf-8")
    run_command("explain", "--pairs", str(pairs), "--out", str(tmp_path / f"maps {FOREIGN}"))
    assert r"maps \u82b1 \u0436/scores.csv" in printed()
    assert FOREIGN in (tmp_path / f"maps {FOREIGN}" / "scores.csv").read_text(encoding="utf-8")


def test_notebooks_print_names_that_the_pipe_lacks(console, make_config, tmp_path, monkeypatch):
    make_config()
    path = tmp_path / f"{FOREIGN}.ipynb"
    cell = nbformat.v4.new_code_cell(f"print({FOREIGN!r})")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    monkeypatch.setenv(CONFIG_VARIABLE, "")  # restored afterwards
    monkeypatch.setattr(sys, "argv", ["utils", "run", "--config", str(tmp_path / "config.yml"), str(path)])
    printed = console("cp1252")
    commands.main()
    assert printed().splitlines().count(r"\u82b1 \u0436") == 1


def test_each_line_is_printed_at_once(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, "utf-8"))
    prepare_output()
    print("line")
    assert content.getvalue() == b"line\n"
