"""Users' YAML, read within bounds and without surprises.

Tags are safe, keys are unique, and aliases cannot multiply. Numbers that YAML 1.1 reads in an unexpected way (032 is
26, 1:30 is 90) are refused.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from datasets.errors import UsageError

MAX_BRACKETS = 1_000  # PyYAML takes quadratic time over nested brackets: minutes for a file of 100 kB
MAX_NODES = 10_000  # with every alias written out, which can be exponentially more than in the file

Location = tuple[str | int, ...]

_LEADING_ZERO = re.compile(r"([-+]?)0+([0-9_]+(\.[0-9_]*)?([eE][-+]?[0-9]+)?)")
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


def parse_yaml(text: str, source: str) -> tuple[Any, dict[Location, int]]:
    """(the document, line of every key and item). source: file or option, for messages. Raises UsageError, in one line
    with the line of the fault.
    """
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise UsageError(f"{source}: more than {MAX_BRACKETS} brackets.")
    loader = yaml.SafeLoader(text)
    lines: dict[Location, int] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _check(node, {}, source)
        _index(node, (), lines, source)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{source}{where}: not valid YAML ({getattr(error, 'problem', None) or error}).") from error
    except ValueError as error:  # a date that does not exist, a number that is none
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{source}: not valid YAML ({error}).") from error
    except RecursionError as error:
        raise UsageError(f"{source}: YAML is nested too deeply.") from error
    finally:
        loader.dispose()


def _check(node: yaml.Node, sizes: dict[int, int], source: str) -> int:
    """Nodes below a node with every alias written out. sizes: of the nodes seen so far, by id; 0 while one is open."""
    seen = sizes.get(id(node))
    if seen == 0:
        raise UsageError(f"{_place(node, source)}: a node contains itself.")
    if seen is not None:
        return seen
    sizes[id(node)] = 0
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        _check_number(node, source)
    elif isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value
    size = 1 + sum(_check(part, sizes, source) for part in parts)
    if size > MAX_NODES:
        raise UsageError(f"{_place(node, source)}: more than {MAX_NODES} nodes once its aliases are written out.")
    sizes[id(node)] = size
    return size


def _check_number(node: yaml.ScalarNode, source: str) -> None:
    value, place = node.value, _place(node, source)
    if node.style is not None:  # quoted: a text
        return
    if (zero := _LEADING_ZERO.fullmatch(value)) is not None:
        meant = f"{zero[1]}{zero[2]}"
        raise UsageError(
            f"{place}: {value} has a leading zero, which YAML takes for an octal number; write {meant}, or "
            f"{value!r} in quotes for a text."
        )
    if ":" in value and node.tag in _NUMBERS:
        read = yaml.safe_load(value)
        raise UsageError(f"{place}: {value} is read as {read} (base 60); write the number, or {value!r} for a text.")


def _place(node: yaml.Node, source: str) -> str:
    return f"{source}, line {node.start_mark.line + 1}"


def _index(node: yaml.Node, location: Location, lines: dict[Location, int], source: str) -> None:
    lines[location] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*location, str(key.value))
            if where in lines:
                raise UsageError(f"{_place(key, source)}: key {key.value!r} stands twice.")
            _index(value, where, lines, source)
            lines[where] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _index(value, (*location, position), lines, source)
