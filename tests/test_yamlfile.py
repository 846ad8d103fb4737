import re

import pytest
import yaml

from utils.config import DEEPEST, LONGEST, load_yaml

ORDINARY = "a: 1\nb: [1, 2.5, 1e-6]\nc:\n    d: text\n    e: null\n    f: yes\n"


def test_ordinary_settings_are_those_of_pyyaml():
    assert load_yaml(ORDINARY) == yaml.safe_load(ORDINARY)
    merged = "base: &base {a: 1, b: 2}\nother:\n    <<: *base\n    b: 3\n"
    assert load_yaml(merged)["other"] == {"a": 1, "b": 3}
    assert load_yaml(f"a: {'[' * DEEPEST}{']' * DEEPEST}")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: 1\nb: 2\na: 3\n", "a stands in line 1 and in line 3"),
        ("c:\n    d: 1\n    d: 1\n", "d stands in line 2 and in line 3"),
        (f"a: {'[' * 10000}", "nested deeper than"),
        (f"a: {'9' * 5000}", "a value of 5000 characters"),
        (f"a: 0x{'f' * 100}", "a number of 102 characters"),
        (f"a: {'x' * (LONGEST + 1)}", "a value of"),
        ('a: !!int ""', "no value of the kind"),
        ("a: !!bool perhaps", "no value of the kind"),
        ("a: 2001-99-99", "no value of the kind"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
    ],
)
def test_what_is_ambiguous_or_monstrous_is_refused(text, cause):
    with pytest.raises(yaml.YAMLError, match=cause):
        load_yaml(text)


def test_a_bomb_of_aliases_takes_no_memory():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
    assert len(load_yaml("\n".join(lines))) == 20  # 10 to the 20th x, were they copied


MISTAKES = {  # a text with a mistake: its line, and what the text was meant to be, read by PyYAML alone
    "a: 1\nseed:1\nb: 2\n": (2, "a: 1\nseed: 1\nb: 2\n"),
    "a: 1\nseed 1\nb: 2\n": (2, "a: 1\nseed: 1\nb: 2\n"),
    "a: 1\nseed = 1\nb: 2\n": (2, "a: 1\nseed: 1\nb: 2\n"),
    "a: 1\nseed\uff1a1\nb: 2\n": (2, "a: 1\nseed: 1\nb: 2\n"),
    "seed:\u00a01\nb: 2\n": (1, "seed: 1\nb: 2\n"),
    "s:\n    a: 1\n   b: 2\nc: 3\n": (3, "s:\n    a: 1\n    b: 2\nc: 3\n"),
    "s:\n    a: 1\n      b: 2\nc: 3\n": (3, "s:\n    a: 1\n    b: 2\nc: 3\n"),
    'a: "C:\\Users\\x"  # mine\nb: 2\n': (1, "a: 'C:\\Users\\x'\nb: 2\n"),
    'a: "C:\\data"\nb: 2\n': (1, "a: 'C:\\data'\nb: 2\n"),
    'a: "C:\\Pictures\\"\nb: 2\n': (1, "a: 'C:\\Pictures\\'\nb: 2\n"),
    "a: [a-z]+_([0-9]+)\nb: 2\n": (1, "a: '[a-z]+_([0-9]+)'\nb: 2\n"),
    "a: *_1\nb: 2\n": (1, "a: '*_1'\nb: 2\n"),
    "a: D: x\nb: 2\n": (1, "a: 'D: x'\nb: 2\n"),
    "a: 'it's'\nb: 2\n": (1, 'a: "it\'s"\nb: 2\n'),
    "a: 'x\nb: 2\n": (1, "a: 'x'\nb: 2\n"),
    'a: "x/y z\nb: 2\n': (1, "a: 'x/y z'\nb: 2\n"),
    "a: x\nb: \"it's  # mine\n": (2, 'a: x\nb: "it\'s"\n'),
    "a: [1, 2\nb: 2\n": (1, "a: [1, 2]\nb: 2\n"),
    "a: 1\n---\nb: 2\n": (2, "a: 1\nb: 2\n"),
}


def cause_of(text):
    with pytest.raises(yaml.YAMLError) as caught:
        load_yaml(text)
    return str(caught.value)


@pytest.mark.parametrize("text", MISTAKES)
def test_the_line_is_named_and_its_correction_ends_the_error(text):
    number, meant = MISTAKES[text]
    said = re.fullmatch(rf"line {number}: .*: write `(.*)`", cause_of(text))
    lines = text.splitlines()
    lines[number - 1] = said[1]
    assert load_yaml("\n".join(lines)) == yaml.safe_load(meant)


def test_of_two_mistakes_each_is_named_in_turn():
    assert cause_of("a:1\nb: 2\nc:3\nd: 4\n").startswith("line 1: ")
    assert cause_of("a: 1\nb: 2\nc:3\nd: 4\n").startswith("line 3: ")


@pytest.mark.parametrize("text", ["s:\n\ta: 1\n\tb: 2\n", "s:\n    a:\t1\n    b: 2\t# two\n"])
def test_all_lines_with_tabs_are_named(text):
    assert cause_of(text) == "line 2, 3: tabs are not allowed here: replace each by four spaces"
    assert load_yaml(text.replace("\t", "    ")) == {"s": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'"C:\new\table"', r"C:\new\table"),  # a line end and a tab
        (r'"D:\Pictures"', r"D:\Pictures"),  # \P ends a paragraph
        (r'"^\b([0-9]+)"', r"^\b([0-9]+)"),  # \b is a backspace
        ("\u201cData/Flowers\u201d", "Data/Flowers"),
        ("\u201eData/Flowers\u201c", "Data/Flowers"),
        ("\u2019Data\u2019", "Data"),
        ("\u00abData\u00bb", "Data"),
    ],
)
def test_a_value_that_is_not_what_it_looks_like(written, meant):
    said = re.fullmatch(r"line 2, `b: .*`: .*: write ('.*')", cause_of(f"a: 1\nb: {written}\n"))
    assert load_yaml(f"a: 1\nb: {said[1]}\n") == {"a": 1, "b": meant}


@pytest.mark.parametrize(
    "value", [r'"C:\\new"', '"two \\"words\\""', r'"\u0416"', "'“x”'", "“a” and “b”c", "it\u2019s"]
)
def test_other_quotes_are_read_as_pyyaml_does(value):
    assert load_yaml(f"a: {value}") == yaml.safe_load(f"a: {value}")


def test_a_character_that_is_no_text():
    for written in (r"\x00", r"\u0000"):
        assert "the character U+0000 is not allowed: delete it" in cause_of(f'a: "b{written}c"')
        assert load_yaml(f'a: "b{written}c"'.replace(written, "")) == {"a": "bc"}
    assert cause_of("a: 1\nb: \x1b[1m\n") == "line 2: the character U+001B is not allowed: delete it"


def test_what_has_no_known_correction_says_how_lines_should_be():
    said = cause_of("a: 1\n}{\nb: 2\n")
    assert said.startswith("line 2, `}{`: ")
    assert said.endswith("each bracket and quote should be closed")


def test_long_texts_are_refused_without_a_search():
    """A line is no riddle to be solved by reading a long file again and again."""
    with pytest.raises(yaml.YAMLError, match="line 1"):
        load_yaml("a: [" + " " * 900_000 + "#")
