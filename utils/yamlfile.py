"""YAML as config.yml needs it: what is ambiguous or monstrous is refused by a YAMLError that names line and cure."""

import codecs
import re
import unicodedata

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

DEEPEST = 30  # lists and sections inside one another
LONGEST = 4096  # characters of a value
MOST_DIGITS = 40  # of a whole number
SHOWN = 100  # characters of a line, and lines of an error
SEARCHED = 30_000  # characters of a text in which changes are tried, each by reading it once more
ABOVE = 2  # lines above the one where an error is noticed in which it may lie
BYTE_ORDER_MARKS = {  # at the start of a file
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
SAVE_AS = "Save the file as UTF-8 (Notepad: Save as, Encoding: UTF-8)"
LAYOUT = (
    "Each line should be `key: value`, the keys of a section should start in the same column, and each bracket and "
    "quote should be closed"
)
CLOSING = {"[": "]", "{": "}"}
LETTER_ESCAPE = re.compile(r"\\[0abtnvfeNLP_]")  # in double quotes: \t is a tab, \P ends a paragraph
PAIR = re.compile(r"(?P<start>\s*[A-Za-z_]\w*)\s*:\s*(?P<value>\S.*?)(?:\s+#.*)?")
KEY_AND_VALUE = re.compile(r"(?P<start>\s*[A-Za-z_]\w*)(?:\s*[:=\uff1a]\s*|\s+)(?P<value>[^\s:=\uff1a].*)")


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader; a key that stands twice in a section is an error, not the last one's value.

    So is a value that is not what it looks like: a Windows path in double quotes, a word in typographic quotes.
    """

    depth = 0

    def compose_node(self, parent, index):
        if self.depth > DEEPEST:
            raise ConstructorError(None, None, f"nested deeper than {DEEPEST}", self.peek_event().start_mark)
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
                cause = f"{key.value} stands in line {lines[key.value]} and in line {line}: delete one of the two"
                raise ConstructorError(None, None, cause)
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        if isinstance(node, yaml.ScalarNode):
            _check_length(node)
            _check_quotes(node)
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
    """Read nested dicts, lists and plain values.

    Raises:
        yaml.YAMLError: The text is no YAML, or is refused. The message names the line, the cause and, where a change of
            that line ends the error, the changed line.
    """
    try:
        return yaml.load(text, PlainLoader)
    except yaml.YAMLError as error:
        raise yaml.YAMLError(_explained(error, text)) from error


def decoded(content: bytes) -> str:
    """Return the text of a file: UTF-8, or what the byte order mark at its start names, as Windows writes it.

    Raises:
        yaml.YAMLError: The bytes are no text in this encoding.
    """
    encoding = "utf-8"
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            encoding = name
            break
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(content[: error.start].splitlines() or [b""])
        cause = f"line {line}: the byte 0x{content[error.start]:02x} is no {encoding.upper()}"
        raise yaml.YAMLError(f"{cause}, so the file was saved in another encoding. {SAVE_AS}") from error
    if "\0" in text:
        raise yaml.YAMLError(f"it holds zero bytes: UTF-16 without a byte order mark, UTF-32, or no text. {SAVE_AS}")
    return text


def _check_length(node):
    if len(node.value) > LONGEST:
        raise ConstructorError(None, None, f"a value of {len(node.value)} characters", node.start_mark)


def _check_quotes(node):
    """Raises ConstructorError for a value that YAML reads as another one than a reader does."""
    if node.style == '"':
        written = node.start_mark.buffer[node.start_mark.pointer : node.end_mark.pointer]
        escapes = LETTER_ESCAPE.search(written.replace(r"\\", "  "))
        if escapes:
            cause = f"{escapes[0]} in double quotes is one special character: write {_single_quoted(written)}"
            raise ConstructorError(None, None, cause, node.start_mark)
    value = node.value
    if "\0" in value:  # as \x00 and \u0000 say it; no file can have such a name
        raise ConstructorError(None, None, "the character U+0000 is not allowed: delete it", node.start_mark)
    if node.style is None and len(value) > 1 and _is_typographic(value[0]) and _is_typographic(value[-1]):
        cause = f"typographic quotes are part of the value: write {_single_quoted(value)}"
        raise ConstructorError(None, None, cause, node.start_mark)


def _is_typographic(character):
    """Whether this is a quote that is part of the value for YAML."""
    return not character.isascii() and "QUOTATION MARK" in unicodedata.name(character, "")


def _explained(error, text):
    """What is wrong in which line, and what to change."""
    if isinstance(error, ReaderError):
        line = len(text[: error.position].splitlines() or [""])
        return f"line {line}: the character U+{error.character:04X} is not allowed: delete it"
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return error.problem
    lines = text.splitlines()
    if "'\\t'" in error.problem:
        numbers = [str(number) for number, line in enumerate(lines, 1) if "\t" in line]
        return f"line {', '.join(numbers[:SHOWN])}: tabs are not allowed here: replace each by four spaces"
    shown = f", `{lines[mark.line].strip()[:SHOWN]}`" if mark.line < len(lines) else ""
    if isinstance(error, ConstructorError):
        return f"line {mark.line + 1}{shown}: {error.problem}"
    if len(text) <= SEARCHED:
        for number in _suspects(error, mark, lines):
            for cause, line in _corrections(lines, number):
                changed = [*lines[:number], line, *lines[number + 1 :]]
                if _reads_beyond("\n".join(changed), mark):
                    return f"line {number + 1}: {cause}: write `{line[:SHOWN]}`"
    cause = f"line {mark.line + 1}{shown}: {error.problem}"
    if error.context and error.context_mark:
        cause += f", {error.context} that began in line {error.context_mark.line + 1}"
    return f"{cause}. {LAYOUT}"


def _suspects(error, mark, lines):
    """The numbers of lines in which the error may lie, the likeliest first."""
    near = list(range(mark.line, mark.line - ABOVE - 1, -1))
    began = error.context_mark.line if error.context_mark else mark.line
    numbers = near if began in near else [began, *near]
    return [number for number in numbers if 0 <= number < len(lines) and len(lines[number]) <= LONGEST]


def _corrections(lines, number):
    """What may be wrong in a line, and the line without it."""
    line = lines[number].rstrip()
    if line == "---":
        yield "it begins a second document, and one is read", "#"
    pair = PAIR.fullmatch(line)
    if pair and pair["value"].startswith('"') and "\\" in pair["value"]:
        cause = "a backslash in double quotes begins a special character"
        yield cause, f"{pair['start']}: {_single_quoted(pair['value'])}"
    if KEY_AND_VALUE.fullmatch(line):
        yield "a colon and a space should follow the key", KEY_AND_VALUE.sub(r"\g<start>: \g<value>", line)
    if pair and pair["value"][0] in CLOSING:
        cause = "a bracket is not closed"
        yield cause, f"{pair['start']}: {pair['value']}{CLOSING[pair['value'][0]]}"
    if pair:
        quoted = pair["value"].strip("'\"").replace("'", "''")
        yield "this value needs quotes", f"{pair['start']}: '{quoted}'"
    above = [other for other in lines[:number] if other.strip() and not other.lstrip().startswith("#")]
    if above:
        margin = above[-1][: len(above[-1]) - len(above[-1].lstrip())]
        shift = f"it should start in column {len(margin) + 1}, as the line above"
        yield shift, margin + line.lstrip()


def _reads_beyond(text, mark):
    """Whether the text is YAML up to the line of a mark, and that line too."""
    try:
        yaml.load(text, PlainLoader)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        return place is not None and place.line > mark.line
    except yaml.YAMLError:
        return False
    return True


def _single_quoted(written):
    """A quoted value in single quotes, where each backslash stands for itself."""
    plain = written[1:].removesuffix('"') if written.startswith('"') else written[1:-1]
    return "'" + plain.replace(r"\\", "\\").replace("'", "''") + "'"
