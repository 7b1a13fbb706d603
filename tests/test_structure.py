"""Holds the five kinds of code: what each module's docstring says it is, its syntax tree must be.

The table stands in docs/design.md ("decide without touching"); floors and siblings are import-linter's part.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.glob("atoll/**/*.py"))

# What gives a module its hands.
TOUCHES = {
    "the clock": {"time", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today"}
    | {"datetime.date.today"},
    "a socket": {"socket", "ssl", "select", "selectors", "socketserver", "http", "urllib.request", "torch.distributed"},
    "a thread": {"threading", "_thread", "queue", "concurrent"},
    "a file": {"open", "os", "io", "pathlib", "shutil", "tempfile", "glob", "mmap", "fcntl"},
    "a process": {"subprocess", "multiprocessing", "signal", "os", "torch.multiprocessing"},
    "the screen": {"print", "input"},
    "global random": {"random", "secrets", "uuid", "torch.manual_seed", "torch.seed"},
    "asyncio": {"asyncio"},
    "blocking or networked asyncio": {"asyncio.run", "asyncio.to_thread", "asyncio.open_connection"}
    | {"asyncio.start_server", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"},
    "bytes": {"numpy", "torch", "ml_dtypes"},
}
WORLD = ["the clock", "a socket", "a thread", "a file", "a process", "the screen", "global random"]
FORBIDDEN = {
    "Policy": [*WORLD, "asyncio"],
    "Schedule": [*WORLD, "asyncio", "bytes"],
    "Interface": [*WORLD, "asyncio"],
    "Program": ["the clock", "a socket", "a thread", "the screen", "global random", "asyncio"],
    "Actor": [*WORLD, "blocking or networked asyncio"],
    "Driver": [],
}
SYNCHRONOUS = {"Policy", "Schedule", "Interface", "Program"}
HANDLESS = {"Policy", "Schedule", "Interface"}  # may not even import a Driver of ours
BUILTINS = {"open", "print", "input"}

# `here()` finds the world of the calling thread, and the real one where none was set.
TOLERATED = {"atoll/runtime/api.py": {"threading", "threading.local", "atoll.runtime.real.RealNode"}}

DRAWS_OF_TORCH = {
    f"torch.{name}" for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")
}
TYPES_OF_RANDOM = {"numpy.random.Generator", "numpy.random.BitGenerator"}


def kind_of(source: str) -> str | None:
    """The first word of the docstring, if it names a kind."""
    found = re.match(rf"({'|'.join(FORBIDDEN)}): \S", ast.get_docstring(ast.parse(source)) or "")
    return found[1] if found else None


def violations(path: str, source: str, kinds: Mapping[str, str]) -> list[str]:
    """What the module at `path` does that its kind may not. `kinds`: those of our modules, by dotted name."""
    kind = kind_of(source)
    if kind is None:
        return [f"{path}:1: the docstring must begin with one of {', '.join(FORBIDDEN)} and a colon"]
    tree = ast.parse(source)
    nodes = list(at_run_time(tree))
    tolerated = TOLERATED.get(path, set())
    found = [
        (node.lineno, "sim is for what is named virtual, sim, cli and reproduce")
        for node in simulator_imports(path, tree)
    ]
    if kind in SYNCHRONOUS:
        found += [(line, "is not async") for line in async_lines(nodes, declarations=kind == "Interface")]
    for node, name in [*imported(path, nodes), *used(path, nodes)]:
        if name in tolerated:
            continue
        found += [
            (node.lineno, f"may not touch {what}: {name}")
            for what in FORBIDDEN[kind]
            if within(name, TOUCHES[what]) or (what == "global random" and is_global_random(name, node))
        ]
    if kind in HANDLESS and not path.endswith("/__init__.py"):
        drivers = {module for module, other in kinds.items() if other == "Driver"}
        found += [
            (node.lineno, f"may not import a Driver: {name}")
            for node, name in imported(path, nodes)
            if within(name, drivers) and name not in tolerated
        ]
    return [f"{path}:{line}: {kind}: {what}" for line, what in sorted(set(found))]


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node`, but for those only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            yield from (inner for branch in child.orelse for inner in (branch, *at_run_time(branch)))
        else:
            yield child
            yield from at_run_time(child)


def imported(path: str, nodes: list[ast.AST]) -> list[tuple[ast.stmt, str]]:
    """Each import with the full name of what it brings."""
    return [(node, name) for node, name, _ in bindings(path, nodes)]


def bindings(path: str, nodes: list[ast.AST]) -> Iterator[tuple[ast.stmt, str, tuple[str, str]]]:
    """Each import: its node, the full name, and (the local name, what that stands for)."""
    package = path.split("/")[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                yield node, alias.name, (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                name = ".".join([*above, *filter(None, [node.module]), alias.name])
                yield node, name, (alias.asname or alias.name, name)


def used(path: str, nodes: list[ast.AST]) -> Iterator[tuple[ast.expr, str]]:
    """Each imported name or builtin in use, in full; a seeded or explicit source of random numbers is none."""
    known = dict(local for _, _, local in bindings(path, nodes))
    known |= {name: name for name in BUILTINS - known.keys()}
    called = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        name = dotted(node, known)
        if name and (name not in BUILTINS or id(node) in called):
            yield called.get(id(node), node), name


def dotted(node: ast.AST, known: Mapping[str, str]) -> str | None:
    """`np.random.rand` as numpy.random.rand; None where it does not start with a known name."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (base := dotted(node.value, known)):
        return f"{base}.{node.attr}"
    return None


def within(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def is_global_random(name: str, node: ast.AST) -> bool:
    """Does `name`, imported, mentioned or called by `node`, draw from a state all share?"""
    if isinstance(node, ast.stmt):
        return False
    if name in DRAWS_OF_TORCH:
        return not (isinstance(node, ast.Call) and any(word.arg == "generator" for word in node.keywords))
    if not name.startswith("numpy.random.") or within(name, TYPES_OF_RANDOM):
        return False
    source = name.split(".")[2]
    if not (source == "default_rng" or source[0].isupper()):
        return True
    given = [*node.args, *(word.value for word in node.keywords)] if isinstance(node, ast.Call) else []
    return not given or (isinstance(given[0], ast.Constant) and given[0].value is None)


def simulator_imports(path: str, tree: ast.Module) -> list[ast.stmt]:
    room, *inner = path.removesuffix(".py").split("/")[1:]
    if "virtual" in inner or room in {"sim", "cli", "reproduce"}:
        return []
    return [node for node, name in imported(path, list(ast.walk(tree))) if within(name, {"atoll.sim"})]


def async_lines(nodes: list[ast.AST], declarations: bool) -> Iterator[int]:
    """Lines with `async` or `await`; `declarations`: but for functions without a body."""
    for node in nodes:
        if isinstance(node, ast.AsyncFunctionDef):
            empty = all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in node.body)
            if not (declarations and empty):
                yield node.lineno
        elif isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield node.lineno
        elif isinstance(node, ast.comprehension) and node.is_async:
            yield node.target.lineno


@pytest.fixture(scope="module")
def kinds() -> dict[str, str]:
    named = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in MODULES}
    return {name: kind_of((SOURCE / path).read_text("utf-8")) or "" for name, path in named.items()}


@pytest.mark.parametrize("path", MODULES)
def test_a_module_is_of_the_kind_it_says(path: str, kinds: dict[str, str]) -> None:
    assert violations(path, (SOURCE / path).read_text("utf-8"), kinds) == []


KINDS_WITHOUT_WORLD = ["Policy", "Schedule", "Interface", "Actor"]
ALL_BUT_DRIVER = [*KINDS_WITHOUT_WORLD, "Program"]
OUR_KINDS = {
    "atoll": "Interface",
    "atoll.net": "Interface",
    "atoll.net.loop": "Driver",
    "atoll.group.membership.roster": "Policy",
}


def found_in(kind: str, code: str, path: str = "atoll/room/module.py") -> list[str]:
    return violations(path, f'"""{kind}: an example."""\n{code}\n', OUR_KINDS)


@pytest.mark.parametrize(
    "docstring", ["", '"""What it does."""', '"""Policy"""', '"""Policies: some."""', '"""policy: x."""']
)
def test_a_module_must_say_its_kind(docstring: str) -> None:
    assert violations("atoll/room/module.py", docstring, OUR_KINDS)


@pytest.mark.parametrize("kind", ALL_BUT_DRIVER)
@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "import time as t",
        "from time import monotonic",
        "def f():\n    import time\n    return time.time()",
        "from datetime import datetime\nx = datetime.now()",
        "import datetime as d\nx = d.datetime.utcnow()",
        "from datetime import date\nx = date.today()",
        "from dataclasses import field\nfrom datetime import datetime\nx = field(default_factory=datetime.now)",
        "import socket",
        "import selectors",
        "from urllib import request",
        "import threading",
        "from concurrent import futures",
        "from concurrent.futures import Future",
        "import queue",
        "print(1)",
        "import random",
        "from random import Random",
        "import secrets",
        "import numpy as np\nx = np.random.rand(3)",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nx = np.random.default_rng()",
        "import numpy as np\nx = np.random.default_rng(None)",
        "import numpy as np\nx = np.random.default_rng(seed=None)",
        "import numpy as np\nx = [np.random.default_rng]",
        "import numpy as np\nx = np.random.Generator(np.random.Philox())",
        "from numpy.random import default_rng\nx = default_rng()",
        "from numpy import random\nx = random.shuffle([1])",
        "import torch\nx = torch.randn(3)",
        "from torch import rand\nx = rand(3)",
        "import torch\ntorch.manual_seed(0)",
        "if True:\n    import time",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    x = 1\nelse:\n    import time",
    ],
)
def test_only_drivers_touch_clock_socket_thread_screen_and_global_random(kind: str, code: str) -> None:
    assert found_in(kind, code)
    assert not found_in("Driver", code)


@pytest.mark.parametrize("kind", KINDS_WITHOUT_WORLD)
@pytest.mark.parametrize(
    "code",
    [
        "x = open('f')",
        "import os",
        "from os import path",
        "from pathlib import Path",
        "import tempfile",
        "import subprocess",
        "import multiprocessing.shared_memory",
        "import signal",
    ],
)
def test_only_programs_and_drivers_touch_files_and_processes(kind: str, code: str) -> None:
    assert found_in(kind, code)
    assert not found_in("Program", code)
    assert not found_in("Driver", code)


@pytest.mark.parametrize("kind", ["Policy", "Schedule", "Interface", "Program"])
@pytest.mark.parametrize(
    "code",
    [
        "async def f():\n    return 1",
        "async def f():\n    await g()",
        "async def f():\n    async with g():\n        pass",
        "async def f():\n    return [x async for x in g()]",
        "import asyncio",
    ],
)
def test_only_actors_and_drivers_are_async(kind: str, code: str) -> None:
    assert found_in(kind, code)
    assert not found_in("Actor", code)


@pytest.mark.parametrize("call", ["to_thread(f)", "open_connection('h', 1)", "run(f())"])
def test_an_actor_reaches_the_world_only_through_its_runtime(call: str) -> None:
    assert found_in("Actor", f"import asyncio\nx = asyncio.{call}")
    assert not found_in("Actor", "import asyncio\nx = asyncio.Queue()")


@pytest.mark.parametrize("code", ["import numpy as np", "import torch", "from ml_dtypes import bfloat16"])
def test_a_schedule_never_sees_bytes(code: str) -> None:
    assert found_in("Schedule", code)
    assert not found_in("Policy", code)


@pytest.mark.parametrize("kind", ["Policy", "Schedule", "Interface"])
@pytest.mark.parametrize(
    "code",
    [
        "import atoll.net.loop",
        "from atoll.net.loop import Loop",
        "from atoll.net import loop",
        "from ..net import loop",
    ],
)
def test_what_only_decides_imports_no_driver(kind: str, code: str) -> None:
    assert found_in(kind, code)
    assert not found_in("Program", code)
    assert not found_in("Interface", code, "atoll/room/__init__.py")
    assert not found_in(kind, "from atoll.group.membership.roster import Roster")


@pytest.mark.parametrize(
    "code", ["import atoll.sim", "from atoll.sim import loop", "from atoll import sim", "from ..sim import loop"]
)
def test_what_runs_for_real_never_loads_the_simulator(code: str) -> None:
    assert found_in("Driver", code, "atoll/group/wire.py")
    assert found_in("Driver", f"def f():\n    {code}", "atoll/train/loop.py")
    assert found_in("Driver", f"if TYPE_CHECKING:\n    {code}", "atoll/train/loop.py")
    for path in (
        "atoll/serve/virtual.py",
        "atoll/group/virtual/world.py",
        "atoll/sim/net.py",
        "atoll/cli/sim.py",
        "atoll/reproduce/pccl.py",
    ):
        assert not found_in("Driver", code, path)


@pytest.mark.parametrize("kind", ALL_BUT_DRIVER)
@pytest.mark.parametrize(
    "code",
    [
        "from datetime import timedelta\nx = timedelta(1)",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import os\n    from threading import Lock",
        "import typing\nif typing.TYPE_CHECKING:\n    import time",
        "def f(input, time):\n    return time.sleep(input)",
        "class Bag:\n    def open(self): ...\nBag().open()",
        "def print_table(): ...\nx = print_table()",
    ],
)
def test_what_touches_nothing_passes(kind: str, code: str) -> None:
    assert not found_in(kind, code)


@pytest.mark.parametrize("kind", ["Policy", "Program", "Actor", "Interface"])
@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np\nx = np.random.default_rng(7)",
        "import numpy as np\nx = np.random.Generator(np.random.Philox(key=7)).normal()",
        "import numpy as np\ndef f(rng: np.random.Generator) -> float:\n    return rng.normal()",
        "import torch\ndef f(g):\n    return torch.randn(3, generator=g)",
    ],
)
def test_random_numbers_from_a_stated_source_pass(kind: str, code: str) -> None:
    assert not found_in(kind, code)


def test_an_interface_may_declare_what_others_await() -> None:
    code = "class Sleeper:\n    async def sleep(self) -> None: ...\n    async def nap(self) -> None:\n        'Short.'"
    assert not found_in("Interface", code)
    assert found_in("Policy", code)


def test_only_the_seam_itself_may_hold_a_thread_local() -> None:
    local = "import threading\nx = threading.local()"
    assert not found_in("Interface", local, "atoll/runtime/api.py")
    assert found_in("Interface", local, "atoll/group/api.py")
    assert found_in("Interface", "import threading\nx = threading.Thread()", "atoll/runtime/api.py")
