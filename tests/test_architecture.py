"""The rules of the house, read from the source; each is shown to fail on a bad example.

A rule takes `{path: text}`, paths relative to the repository, and returns its violations.
"""

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    **dict.fromkeys(["_functions", "_shown"], -3),
    **dict.fromkeys(["_checks", "_closures", "_masks", "_placeholders"], -2),
    **dict.fromkeys(["_programs", "_sharding"], -2),
    "_transformations": -1,
    **dict.fromkeys(["core", "kernels"], 0),
    **dict.fromkeys(["networks", "checkpoint", "classic", "gaussian_process"], 1),
    **dict.fromkeys(["tasks", "learned"], 2),
    **dict.fromkeys(["meta", "suite"], 3),
    **dict.fromkeys(["evaluate", "hyper"], 4),
    "plots": 5,
    "cli": 6,
    **dict.fromkeys(["__main__", "__init__"], 7),
}
# Meta-training receives tasks and optimizers as values.
HIGHEST_IMPORT = {"meta": 1}

Sources = dict[str, str]


def _read(*folders: str) -> Sources:
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def _library(sources: Sources) -> Iterator[tuple[str, ast.Module]]:
    """The path and syntax tree of each file of the library."""
    for path, text in sources.items():
        if path.startswith("l2ljax/"):
            yield path, ast.parse(text)


def _room(path: str) -> str:
    return PurePosixPath(path).with_suffix("").parts[1]


def _module(path: str) -> str:
    return ".".join(PurePosixPath(path).with_suffix("").parts).removesuffix(".__init__")


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_go_to_lower_floors(sources: Sources) -> list[str]:
    found = []
    for path, tree in _library(sources):
        room = _room(path)
        if room not in FLOORS:
            found.append(f"{path}: {room} has no floor")
            continue
        highest = HIGHEST_IMPORT.get(room, FLOORS[room] - 1)
        for name in _imports(tree):
            if name.startswith("."):
                found.append(f"{path}: relative import {name}")
            if not name.startswith("l2ljax.") or name == "l2ljax.__version__":
                continue
            target = name.split(".")[1]
            if target != room and FLOORS.get(target, FLOORS["__init__"]) > highest:
                found.append(f"{path}: imports {name}")
    return found


def rooms_are_entered_by_their_doors(sources: Sources) -> list[str]:
    inner = re.compile(r"l2ljax\.(\w+)\._\w+.*")
    return [
        f"{path}: imports {name}"
        for path, tree in _library(sources)
        for name in _imports(tree)
        if (match := inner.fullmatch(name)) and match[1] != _room(path)
    ]


def libraries_have_one_door(sources: Sources) -> list[str]:
    doors = {"flax": "l2ljax/networks/", "matplotlib": "l2ljax/plots/"}
    return [
        f"{path}: imports {name}"
        for path, tree in _library(sources)
        for name in _imports(tree)
        if not path.startswith(doors.get(name.split(".")[0], path))
    ]


def nothing_is_pickled(sources: Sources) -> list[str]:
    picklers = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    found = []
    for path, text in sources.items():
        tree = ast.parse(text)
        found += [f"{path}: {name}" for name in _imports(tree) if name.split(".")[0] in picklers]
        found += [
            f"{path}:{node.value.lineno}: allow_pickle"
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
            if not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ]
    return found


def only_the_command_line_prints(sources: Sources) -> list[str]:
    return [
        f"{path}:{node.lineno}: print"
        for path, tree in _library(sources)
        if _room(path) not in ("cli", "__main__")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def only_the_command_line_reads_clock_and_environment(sources: Sources) -> list[str]:
    reading = re.compile(r"(time|datetime)(\..*)?|os\.(environb?|getenvb?)(\..*)?")
    found = []
    for path, tree in _library(sources):
        if _room(path) in ("cli", "__main__"):
            continue
        attributes = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        names = [*_imports(tree), *(a for a in attributes if a.startswith("os."))]
        found += [f"{path}: {name}" for name in names if reading.fullmatch(name)]
    return found


def public_names_have_docstrings(sources: Sources) -> list[str]:
    found = []
    for path, tree in _library(sources):
        if ast.get_docstring(tree) is None:
            found.append(f"{path}: no docstring")
        found += [
            f"{path}: {node.name} has no docstring"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if not node.name.startswith("_") and ast.get_docstring(node) is None
        ]
    return found


def files_are_short(sources: Sources) -> list[str]:
    lengths = {path: text.count("\n") for path, text in sources.items()}
    return [f"{path}: {length} lines" for path, length in lengths.items() if length > 500]


def an_object_is_exported_once(sources: Sources) -> list[str]:
    # The package's front door shows the types of `core`, which declares no `__all__`.
    trees = {_module(path): tree for path, tree in _library(sources)}
    origins = {
        module: {
            alias.asname or alias.name: (node.module, alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        for module, tree in trees.items()
    }

    def origin(module: str, name: str) -> tuple[str, str]:
        while f"{module}.{name}" not in trees and name in origins.get(module, {}):
            module, name = origins[module][name]
        return module, name

    paths = defaultdict(list)
    for module, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                for name in ast.literal_eval(node.value):
                    paths[origin(module, name)].append(f"{module}.{name}")
    return [" and ".join(same) for same in paths.values() if len(same) > 1]


def files_of_tests_have_different_names(sources: Sources) -> list[str]:
    paths = defaultdict(list)
    for path in sources:
        name = PurePosixPath(path).name
        if path.startswith("tests/") and name not in ("__init__.py", "conftest.py"):
            paths[name].append(path)
    return [" and ".join(same) for same in paths.values() if len(same) > 1]


def no_path_of_one_machine(sources: Sources) -> list[str]:
    private = re.compile(r"(?<![\w.~])(/(home|Users|root|work|workspace)/\w+|[A-Z]:\\\\?Users)")
    return [
        f"{path}: {match.group()}"
        for path, text in sources.items()
        for match in private.finditer(text)
    ]


Rule = Callable[[Sources], list[str]]

BAD: list[tuple[Rule, Sources]] = [
    (imports_go_to_lower_floors, {"l2ljax/core.py": "from l2ljax import classic"}),
    (imports_go_to_lower_floors, {"l2ljax/core.py": "import l2ljax.meta._unroll"}),
    (imports_go_to_lower_floors, {"l2ljax/classic/adam.py": "from l2ljax.networks import x"}),
    (imports_go_to_lower_floors, {"l2ljax/learned/a.py": "def f():\n  from l2ljax.tasks import x"}),
    (imports_go_to_lower_floors, {"l2ljax/meta/__init__.py": "from l2ljax.tasks import mnist"}),
    (imports_go_to_lower_floors, {"l2ljax/hyper/a.py": "from l2ljax.evaluate import tune"}),
    (imports_go_to_lower_floors, {"l2ljax/tasks/a.py": "from l2ljax import Task"}),
    (imports_go_to_lower_floors, {"l2ljax/tasks/a.py": "from . import mnist"}),
    (imports_go_to_lower_floors, {"l2ljax/attic.py": ""}),
    (rooms_are_entered_by_their_doors, {"l2ljax/hyper/a.py": "from l2ljax.meta._unroll import x"}),
    (libraries_have_one_door, {"l2ljax/learned/lstm.py": "import flax.linen as nn"}),
    (libraries_have_one_door, {"l2ljax/cli.py": "def f():\n  from matplotlib import pyplot"}),
    (nothing_is_pickled, {"tests/test_a.py": "import pickle"}),
    (nothing_is_pickled, {"l2ljax/a.py": "np.load(path, allow_pickle=True)"}),
    (only_the_command_line_prints, {"l2ljax/meta/a.py": "def f():\n  print(1)"}),
    (only_the_command_line_reads_clock_and_environment, {"l2ljax/a.py": "import time"}),
    (only_the_command_line_reads_clock_and_environment, {"l2ljax/a.py": "from time import time"}),
    (only_the_command_line_reads_clock_and_environment, {"l2ljax/a.py": "x = os.environ['A']"}),
    (only_the_command_line_reads_clock_and_environment, {"l2ljax/a.py": "os.getenv('A')"}),
    (public_names_have_docstrings, {"l2ljax/a.py": "x = 1"}),
    (public_names_have_docstrings, {"l2ljax/a.py": '"""A."""\ndef f(): pass'}),
    (public_names_have_docstrings, {"l2ljax/a.py": '"""A."""\nclass C: pass'}),
    (files_are_short, {"benchmarks/a.py": "\n" * 501}),
    (
        an_object_is_exported_once,
        {
            "l2ljax/meta/__init__.py": "from l2ljax.meta._a import f as g\n__all__ = ['g']",
            "l2ljax/hyper/__init__.py": "from l2ljax.meta import g\n__all__ = ['g']",
        },
    ),
    (files_of_tests_have_different_names, {"tests/a/test_x.py": "", "tests/b/test_x.py": ""}),
    (no_path_of_one_machine, {"README.md": "see /" + "home/ada/data"}),
]
RULES = list(dict.fromkeys(rule for rule, _ in BAD))


def _tracked() -> Sources:
    """All text files that are under version control."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    contents = {f.relative_to(ROOT).as_posix(): f.read_bytes() for f in files if f.is_file()}
    return {
        path: content.decode("utf-8", "replace")
        for path, content in contents.items()
        if b"\0" not in content
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    tracked = rule is no_path_of_one_machine
    sources = _tracked() if tracked else _read("l2ljax", "tests", "benchmarks")
    assert rule(sources) == []


@pytest.mark.parametrize(("rule", "sources"), BAD)
def test_rule_fails_on_a_bad_example(rule: Rule, sources: Sources) -> None:
    assert len(rule(sources)) == 1


def test_good_imports_are_no_violation() -> None:
    good = {
        "l2ljax/checkpoint.py": "from l2ljax import __version__\nfrom l2ljax.core import Spec",
        "l2ljax/meta/_train.py": "from l2ljax.meta._unroll import unroll\nimport optax",
        "l2ljax/networks/_mlp.py": "import flax",
        "l2ljax/__init__.py": "from l2ljax import cli, core",
    }
    for rule in (imports_go_to_lower_floors, libraries_have_one_door):
        assert rule(good) == []
