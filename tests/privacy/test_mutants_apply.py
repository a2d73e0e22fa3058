"""Every seeded bug still has its place in the code, and the test that should notice it still exists."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

from tests.privacy.mutants.mutants import MUTANTS

ROOT = Path(__file__).parents[2]


def test_every_seeded_bug_has_exactly_one_place_in_the_code() -> None:
    places = {mutant.name: (ROOT / mutant.file).read_text().count(mutant.old) for mutant in MUTANTS}
    assert {name: count for name, count in places.items() if count != 1} == {}


def test_every_seeded_bug_changes_something_and_is_named_once() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    assert [mutant.name for mutant in MUTANTS if mutant.old == mutant.new] == []


def test_every_seeded_bug_is_a_program_that_uses_only_names_that_it_knows() -> None:
    """One that ends in a NameError is noticed by any test, and so says nothing of the test that should notice it."""
    strange = {m.name: _unknown((ROOT / m.file).read_text().replace(m.old, m.new)) for m in MUTANTS}
    assert {name: names for name, names in strange.items() if names} == {}


def _unknown(text: str) -> set[str]:
    """Names that a program reads and binds nowhere."""
    read: set[str] = set()
    bound = {"__file__", *dir(builtins)}
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(ctx=ast.Load()):
                read.add(node.id)
            case ast.Name():
                bound.add(node.id)
            case ast.alias():
                bound.add((node.asname or node.name).split(".")[0])
            case ast.FunctionDef() | ast.ClassDef():
                bound.add(node.name)
            case ast.arg():
                bound.add(node.arg)
            case ast.ExceptHandler() | ast.MatchAs() if node.name:
                bound.add(node.name)
    return read - bound


def test_the_test_that_should_notice_it_exists() -> None:
    missing = []
    for mutant in MUTANTS:
        file, function = mutant.test.split("[")[0].split("::")
        if f"def {function}(" not in (ROOT / "tests" / file).read_text():
            missing.append(mutant.test)
    assert missing == []
