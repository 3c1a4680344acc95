"""Imports point down: a floor knows those below it, and nothing foreign is imported at all."""

import ast
import functools
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "krakenbot"
FLOORS = {
    0: "model pairs errors format",
    1: "records strategy risk decision order_states kraken.signing",
    2: "alerts rulefile plan journal journal_file identity lock clock "
    "log config credentials kraken.client kraken.transport kraken.counter",
    3: "accounting market candles bot orders kraken.spot startup retry handover assemble notify "
    "presence",
}
ROOMS = tuple(f"krakenbot.{room}" for room in ("kraken", "simulated", "backtest", "commands"))
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
ON_TOP = {
    "kraken": 0,
    "config_reader": 4,
    "simulated": 4,
    "backtest": 4,
    "commands": 5,
    "cli": 6,
    "__main__": 7,
    "__init__": 0,
}
# The front door of the parts chooses the account of paper mode, and only when it is asked for.
LAZY_EXCEPTIONS = {("assemble", "simulated"), ("startup", "backtest")}
# What pure modules may use of the standard library: nothing that reads a file, a clock or a socket.
PURE = {"binascii", "collections", "contextlib", "decimal", "enum", "functools", "hashlib", "hmac"}
PURE |= {"itertools", "json", "math", "re", "typing", "uuid"}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the package, parsed, by its dotted name without the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Yield the full names of imported modules; with `lazy` those inside functions as well."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0, f"a relative import of {module!r}"
            if module == "krakenbot":
                yield from (f"krakenbot.{alias.name}" for alias in node.names)
            elif module in ROOMS:
                yield from (f"{module}.{alias.name}" for alias in node.names)
            else:
                yield module
        elif lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports(node, lazy=lazy)


def own(names: Iterator[str]) -> set[str]:
    """Return those of the package's own modules, without its name; values of it are left out."""
    inside = {name.removeprefix("krakenbot.") for name in names if name.startswith("krakenbot.")}
    return {name for name in inside if not name.startswith("__")}


def floor(name: str) -> int | None:
    return FLOOR_OF.get(name, ON_TOP.get(name.split(".")[0]))


class TestFloors(unittest.TestCase):
    modules: dict[str, ast.Module]

    @classmethod
    def setUpClass(cls) -> None:
        cls.modules = modules()

    def test_every_module_of_the_top_level_stands_on_a_floor(self) -> None:
        self.assertEqual([], [name for name in self.modules if floor(name) is None])

    def test_an_import_points_to_the_same_or_a_lower_floor(self) -> None:
        wrong = []
        for name, tree in self.modules.items():
            for target in own(imports(tree, lazy=True)):
                if (name, target.split(".")[0]) in LAZY_EXCEPTIONS:
                    continue
                here, there = floor(name), floor(target)
                if here is not None and (there is None or there > here):
                    wrong.append(f"{name} imports {target}")
        self.assertEqual([], wrong)

    def test_no_modules_import_each_other_in_a_circle(self) -> None:
        graph = {name: own(imports(tree, lazy=True)) for name, tree in self.modules.items()}
        left = {
            name: {target for target in targets if target in graph}
            for name, targets in graph.items()
        }
        while free := [name for name, targets in left.items() if not targets & left.keys()]:
            for name in free:
                del left[name]
        self.assertEqual({}, left)

    def test_only_the_standard_library_and_the_package_itself_are_imported(self) -> None:
        foreign = {
            f"{name}: {target}"
            for name, tree in self.modules.items()
            for target in imports(tree, lazy=True)
            if target.split(".")[0] not in sys.stdlib_module_names | {"krakenbot", "__future__"}
        }
        self.assertEqual(set(), foreign)

    def test_the_trading_path_needs_nothing_simulated_and_no_command(self) -> None:
        for name in FLOOR_OF:
            if name not in self.modules:
                continue
            tree = self.modules[name]
            with self.subTest(name):
                at_once = {target.split(".")[0] for target in own(imports(tree, lazy=False))}
                self.assertFalse(at_once & {"simulated", "backtest", "commands", "cli"})
                later = {target.split(".")[0] for target in own(imports(tree, lazy=True))}
                allowed = {room for user, room in LAZY_EXCEPTIONS if user == name}
                self.assertLessEqual(later & {"simulated", "backtest", "commands", "cli"}, allowed)

    def test_deciding_reads_no_file_no_clock_and_no_socket(self) -> None:
        for name, tree in self.modules.items():
            if floor(name) in (0, 1):
                with self.subTest(name):
                    taken = {target.split(".")[0] for target in imports(tree, lazy=True)}
                    # format writes a time that it is given.
                    allowed = {"time"} if name == "format" else set()
                    self.assertLessEqual(taken, PURE | {"krakenbot"} | allowed)

    def test_only_the_clock_and_the_transport_read_the_system_s_time(self) -> None:
        for name in ("candles", "journal", "bot", "plan", "rulefile"):
            with self.subTest(name):
                found = imports(self.modules[name], lazy=True)
                taken = {target.split(".")[0] for target in found}
                self.assertFalse(taken & {"time", "datetime", "random", "socket", "urllib"})
