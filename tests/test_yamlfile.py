import pytest
import yaml

from utils.yamlfile import DEEPEST, LONGEST, load_yaml

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
