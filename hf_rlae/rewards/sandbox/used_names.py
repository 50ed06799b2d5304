"""Which names of the tests belong to the program, and which to the tests."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from hf_rlae.errors import RewardError

_BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True)
class UsedNames:
    """What the names are that tests use without defining them.

    Attributes:
        program (`tuple[str, ...]`): globals of the program.
        modules (`tuple[str, ...]`): modules of the standard library that the tests take for granted.
        imports (`tuple[str, ...]`): imports of the reference solution that the tests take for granted.
    """

    program: tuple[str, ...]
    modules: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()


def used_names(tests: str, reference: str | None = None) -> UsedNames:
    """Sorts the free names of tests.

    A name that the reference solution imports is imported for the tests, and one that it defines is the program's, also
    a name of `builtins`. Without a reference, a module of the standard library of which only attributes are used is
    imported, and all others but those of `builtins` are the program's. If none is left, it is the only function of
    `builtins` that the tests call. So a program cannot replace what the tests compare with, such as `sorted`.

    Args:
        tests (`str`): the text of all tests.
        reference (`str`, *optional*): a right program.

    Raises:
        RewardError: the tests are not Python, or name nothing that a program could define.

    Example:

    >>> used_names("assert math.isclose(area(2), sum([1, 3]))")
    UsedNames(program=('area',), modules=('math',), imports=())
    >>> used_names("assert sum(10, 15) == 6").program
    ('sum',)
    """
    tree = _parsed(tests)
    if tree is None:
        raise RewardError(f"the tests are not Python: {tests!r:.200}")
    free = _loaded(tree) - _bound(tree)
    right = _parsed(reference) if reference else None
    defined, imported = ({}, {}) if right is None else (_defined(right), _imported(right))
    imports = {line for name, line in imported.items() if name in free and name not in defined}
    free -= {*imported} - {*defined}
    modules = {name for name in free - {*defined} if name in sys.stdlib_module_names and not _is_used_alone(tree, name)}
    program = {name for name in free if name in defined or name not in _BUILTINS} - modules
    if not program:
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {function.id for function in calls if isinstance(function, ast.Name)} & free
        program = called if len(called) == 1 else set()
    if not program:
        raise RewardError(f"the tests call nothing that a program could define: {tests!r:.200}")
    return UsedNames(tuple(sorted(program)), tuple(sorted(modules)), tuple(sorted(imports)))


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _loaded(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _bound(tree: ast.Module) -> set[str]:
    """All names that are given a meaning somewhere in the tests."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(_names_of(node))
    return names


def _names_of(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for alias in node.names:
        yield alias.asname or alias.name.partition(".")[0]


def _defined(tree: ast.Module) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
    return found


def _imported(tree: ast.Module) -> dict[str, str]:
    """The import that gives each name."""
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name: ast.unparse(node) for node in imports for name in _names_of(node)}


def _is_used_alone(tree: ast.Module, name: str) -> bool:
    """Whether a name is used other than as `name.attribute`."""
    of_attributes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    return any(id(node) not in of_attributes for node in found)
