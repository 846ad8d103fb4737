"""YAML as config.yml needs it: what is ambiguous or monstrous is refused, with its line, by a YAMLError."""

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

DEEPEST = 30  # lists and sections inside one another
LONGEST = 4096  # characters of a value
MOST_DIGITS = 40  # of a whole number


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader; a key that stands twice in a section is an error, not the last one's value."""

    depth = 0

    def compose_node(self, parent, index):
        if self.depth > DEEPEST:
            raise ComposerError(None, None, f"nested deeper than {DEEPEST}", self.peek_event().start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node, deep=False):
        lines = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConstructorError(None, None, f"{key.value} stands in line {lines[key.value]} and in line {line}")
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        if isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST:
            raise ConstructorError(None, None, f"a value of {len(node.value)} characters", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # as in !!int ""
            raise ConstructorError(None, None, f"no value of the kind {node.tag}: {error}", node.start_mark) from error

    def construct_yaml_int(self, node):
        if len(node.value) > MOST_DIGITS:
            raise ConstructorError(None, None, f"a number of {len(node.value)} characters", node.start_mark)
        return super().construct_yaml_int(node)


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)


def load_yaml(text: str):
    """What the text holds: nested dicts, lists and plain values. Raises yaml.YAMLError."""
    return yaml.load(text, PlainLoader)
