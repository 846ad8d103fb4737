"""YAML as config.yml needs it: PyYAML's values, and one error with line and cause for everything else."""

import pytest
import yaml

from utils.config import LONGEST, load_yaml

ORDINARY = """
a: 1
b: [1, 2.5, 1e-6]
c:
    d: text
    e: null
    f: yes
g: on
h: 1_000
i: 010
j: 2001-09-09
k: 1:30
"""


def refusal(content):
    with pytest.raises(yaml.YAMLError) as caught:
        load_yaml(content)
    return str(caught.value)


def test_ordinary_settings_are_those_of_pyyaml():
    assert load_yaml(ORDINARY) == yaml.safe_load(ORDINARY)
    merged = "base: &base {a: 1, b: 2}\nother:\n    <<: *base\n    b: 3\n"
    assert load_yaml(merged)["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: 1\nb: 2\na: 3\n", "a is given in line 1 and in line 3: delete one"),
        ("c:\n    d: 1\n    d: 1\n", "d is given in line 2 and in line 3: delete one"),
        (f"a: {'[' * 10000}", "a value cannot be read"),
        (f"a: 1\nb: {'9' * 5000}", "line 2: a value of 5000 characters is too long"),
        (f"a: {'x' * (LONGEST + 1)}", f"line 1: a value of {LONGEST + 1} characters"),
        ('a: !!int ""', "a value cannot be read"),
        ("a: !!bool perhaps", "a value cannot be read"),
        ("a: 2001-99-99", "a value cannot be read"),
        (f"a: {'1:' * 1000}1.5", "a value cannot be read"),
        ("a: !!python/object/apply:os.system [echo]", "line 1: could not determine a constructor"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("a: 1\nb: \x1b[1m\n", "unacceptable character #x001b"),
        ('a: "x\\u2028y"', "line 1: an invisible line end is part of the value"),
    ],
)
def test_what_is_no_value_is_refused(text, cause):
    assert cause in refusal(text)


def test_a_bomb_of_aliases_takes_no_memory():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
    assert len(load_yaml("\n".join(lines))) == 20  # 10 to the 20th x, were they copied


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nseed:1\nb: 2\n", {2, 3}),  # PyYAML notices the missing space in the next line
        ("a: 1\nseed 1\nb: 2\n", {2, 3}),
        ("a: 1\nseed = 1\nb: 2\n", {2, 3}),
        ("s:\n    a: 1\n   b: 2\nc: 3\n", {3}),
        ("s:\n    a: 1\n      b: 2\nc: 3\n", {3}),
        ("s:\n\ta: 1\n\tb: 2\n", {2}),
        ('a: "C:\\Users\\x"  # mine\nb: 2\n', {1}),
        ('a: "C:\\data"\nb: 2\n', {1}),
        ("a: [a-z]+_([0-9]+)\nb: 2\n", {1}),
        ("a: D: x\nb: 2\n", {1}),
        ("a: 'it's'\nb: 2\n", {1}),
        ("a: 'x\nb: 2\n", {1, 3}),
        ("a: [1, 2\nb: 2\n", {1, 2}),
        ("a: 1\n---\nb: 2\n", {1, 2}),
    ],
)
def test_lines_and_how_they_should_be_written_are_named(text, lines):
    message = refusal(text)
    assert message.endswith("put values with special characters in single quotes")
    for line in lines:
        assert f"line {line}" in message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'"C:\new\table"', r"C:\new\table"),  # a line end and a tab
        (r'"D:\Pictures"', r"D:\Pictures"),  # \P ends a paragraph
        (r'"^\b([0-9]+)"', r"^\b([0-9]+)"),  # \b is a backspace
        (r'"a\x00b"', r"a\x00b"),  # no file can have such a name
        ("\u201cData/Flowers\u201d", "Data/Flowers"),
        ("\u201eData/Flowers\u201c", "Data/Flowers"),
        ("\u2019Data\u2019", "Data"),
        ("\u00abData\u00bb", "Data"),
    ],
)
def test_a_value_that_is_not_what_it_looks_like(written, meant):
    for content in (f"a: 1\nb: {written}\n", f"a: 1\nb: {written}\n".encode()):
        message = refusal(content)
        assert message.startswith("line 2: ")
        assert "single quotes" in message
    assert load_yaml(f"a: 1\nb: '{meant}'\n") == {"a": 1, "b": meant}


@pytest.mark.parametrize(
    "value",
    [r'"C:\\new"', '"two \\"words\\""', r'"\u0416"', "'“x”'", "“a” and “b”c", "it\u2019s", "", '"\\\\\\\\host"', '""'],
)
def test_other_quotes_are_read_as_pyyaml_does(value):
    assert load_yaml(f"a: {value}") == yaml.safe_load(f"a: {value}")
    assert load_yaml(f"a: {value}".encode()) == yaml.safe_load(f"a: {value}")


def test_a_long_line_is_refused_at_once():
    assert "line 1" in refusal("a: [" + " " * 900_000 + "#")
