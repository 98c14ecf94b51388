"""The plan of the house: imports run one way between packages and between rooms, and the harness knows contracts, not
names. A room is a folder, or a file beside the folders; docs/design.md draws the picture.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import benchmark
import datasets
import methods
from datasets.registry import dataset_names
from methods.backbones.backbone import supported_backbones
from methods.registry import method_names

ROOT = Path(benchmark.__file__).parent.parent
PACKAGES = ("datasets", "methods", "benchmark")  # each imports from those before it
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

COMMANDS = "run report check throughput list data export tune"
FOR_COMMANDS = {("benchmark", "cli"), ("benchmark", "api"), ("datasets", "errors")}
MAX_COMMAND_LINES = 150

# The rooms of a package from the ground up: each imports only from those before it. Rooms of one line import nothing
# of one another.
FLOORS = {
    "datasets": (
        "datasets errors declared",
        "settings protocols",
        "images",
        "kinds",
        "contracts",
        "roles registry array_input",
        "on_disk mnist_digits",
        "cifar100_20 celeba cityscapes class_sets decathlon domainnet elpv fashion_products mnist_two_domains "
        "multi_mnist nyuv2 omniglot own oxford_pets pascal_context taskonomy",
        "digit_domains",
    ),
    "methods": (
        "methods figures streams graph traits parameters",
        "backbones",
        "contracts",
        "plain control registry operating judging sparsity",
        "single_task hard_sharing adashare branched dag_search dmo pruned soft_sharing",
        "lora merged recon taps task_switching",
    ),
    "benchmark": (
        "version escape",
        "records cli",
        "plan tables",
        "show train",
        "compare workers deploy",
        "speed",
        "api",
        COMMANDS,
        "__main__",
        "benchmark",
    ),
}
LEFT_WING = {"train", "workers", "speed"}  # they write records
RIGHT_WING = {"tables", "show", "compare", "deploy"}  # they read records


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> tuple[str, str]:
    """(package, room) of a module."""
    package, *rest = module.split(".")
    return package, rest[0] if rest else package


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield from executed(child)


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Our modules that a file imports anywhere in it, inside functions too; not what it imports for types alone."""
    found = set()
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module.split(".")[0] in PACKAGES:
                names = {f"{module}.{alias.name}" for alias in node.names}
                found.update(name if name in MODULES else module for name in names)
    return frozenset(found - {module_of(path)})


def problem_of_import(importer: str, module: str) -> str | None:
    """Why an import runs the wrong way, None where it may stand."""
    (package, room), (other_package, other_room) = room_of(importer), room_of(module)
    if package != other_package:
        return None if PACKAGES.index(other_package) < PACKAGES.index(package) else "packages import one way"
    if room == other_room:
        return None
    floors = {name: number for number, names in enumerate(FLOORS[package]) for name in names.split()}
    if room == "records" and other_room != "version":
        return "records import no sibling but version"
    if room in RIGHT_WING and other_room in LEFT_WING:
        return "the reading wing never imports the writing wing"
    return None if floors[other_room] < floors[room] else f"{other_room} does not lie below {room}"


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for module in MODULES}
    placed = {(package, name) for package, floors in FLOORS.items() for names in floors for name in names.split()}
    assert rooms == placed


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_down(path: Path) -> None:
    importer = module_of(path)
    problems = {module: problem_of_import(importer, module) for module in imported(path)}
    assert {module: why for module, why in problems.items() if why is not None} == {}


@pytest.mark.parametrize("name", COMMANDS.split())
def test_commands_only_parse_and_call_the_api(name: str) -> None:
    path = MODULES[f"benchmark.{name}"]
    assert {room_of(module) for module in imported(path)} <= FOR_COMMANDS
    nodes = list(executed(ast.parse(path.read_text(encoding="utf-8"))))
    words = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    words += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {word.split(".")[0] for word in words} <= {*sys.stdlib_module_names, *PACKAGES, "typer"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_COMMAND_LINES


def test_no_imports_run_in_a_circle() -> None:
    # A module finds its siblings through the package around it, which is imported before it in any case.
    graph = {
        module: {other for other in imported(path) if not module.startswith(f"{other}.")}
        for module, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_CLASS = 450, 250


def too_long(path: Path) -> Iterator[str]:
    """Names of what a reader cannot take in at one sitting: the file, or classes in it."""
    text = path.read_text(encoding="utf-8")
    if text.count("\n") > MOST_LINES_OF_A_FILE:
        yield module_of(path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= MOST_LINES_OF_A_CLASS:
            yield f"{module_of(path)}.{node.name}"


def test_files_and_classes_can_be_read_at_one_sitting() -> None:
    assert {name for path in FILES for name in too_long(path)} == set()


@pytest.mark.parametrize(
    ("importer", "module"),
    [
        ("datasets.kinds.depth", "methods.contracts"),
        ("methods.contracts", "benchmark.records.record"),
        ("benchmark.records.store", "benchmark.plan.suite"),
        ("benchmark.tables.table", "benchmark.train.cell"),
        ("benchmark.show.page.build", "benchmark.workers.executors"),
        ("benchmark.deploy.network", "benchmark.speed.timing"),
        ("benchmark.plan.cells", "benchmark.train.cell"),
        ("benchmark.api.running", "benchmark.run"),
        ("benchmark.api.reporting", "benchmark.report"),
    ],
)
def test_a_wrong_import_is_found(importer: str, module: str) -> None:
    assert problem_of_import(importer, module) is not None


def strings_and_names(path: Path) -> set[str]:
    """Every word of the code that is not a comment or a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words.add(node.value)
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            words.update((node.module or "").split("."))
    return words


# `single_task` is also what `Trainer.single_task` gives, by the contract.
CONTRACT_WORDS = {"single_task"}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmark").rglob("*.py")), ids=lambda path: path.name)
def test_the_harness_names_no_method_data_set_or_backbone(path: Path) -> None:
    registered = {*method_names(), *dataset_names(), *supported_backbones()} - CONTRACT_WORDS
    assert not strings_and_names(path) & registered


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_commands_start_without_heavy_imports() -> None:
    code = (
        "import sys, benchmark.run, benchmark.report, benchmark.list, benchmark.__main__; print(*sorted(sys.modules))"
    )
    loaded = set(python(code).split())
    assert not loaded & {"torch", "timm", "torchvision", "pandas", "scipy", "sklearn", "mmseg", "matplotlib"}


def test_the_public_names_of_datasets_are_there_and_cost_no_torch() -> None:
    tree = ast.parse((ROOT / "datasets/__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("datasets.")
        for alias in node.names
    }
    assert typed == datasets._HOME_OF  # what type checkers and the hash of a program read, and what is imported
    assert sorted(datasets.__all__) == sorted(typed)
    assert set(datasets.__all__) <= set(dir(datasets))
    code = (
        "import sys, datasets; print(len([name for name in sys.modules if name.startswith('datasets')])); "
        "[getattr(datasets, name) for name in datasets.__all__]; print(*sorted(sys.modules))"
    )
    alone, loaded = python(code).splitlines()
    assert alone == "1"
    assert not set(loaded.split()) & {"torch", "torchvision", "pandas", "scipy", "sklearn", "h5py"}
    with pytest.raises(AttributeError, match="no attribute 'load_dataset'"):
        datasets.load_dataset  # noqa: B018


def test_the_public_names_of_methods_are_loaded_when_they_are_asked_for() -> None:
    """What plug-ins import; `import methods` alone costs nothing."""
    heavy = "print({'torch', 'timm', 'pydantic', 'numpy'} & set(sys.modules))"
    assert python(f"import sys, methods; {heavy}") == "set()"
    assert python(f"import sys; from methods import Method, Statement, fit_graph; {heavy}") == "{'pydantic'}"
    assert set(methods.__all__) == set(methods._MODULE_OF)
    assert set(methods.__all__) < set(dir(methods))
    for name in methods.__all__:
        assert getattr(methods, name).__module__ == methods._MODULE_OF[name]
    with pytest.raises(AttributeError, match="has no attribute 'Methd'"):
        methods.Methd  # noqa: B018


def test_a_worker_imports_only_what_its_cells_need() -> None:
    """What plans, draws, tables and other data sets bring would be paid once a worker, before its first step."""
    code = (
        "import sys, benchmark.workers.executors, benchmark.plan.plugins, benchmark.train.cell; "
        "from methods.registry import get_method; from datasets.registry import get_dataset; "
        "get_method('hard_sharing'); get_dataset('multi_mnist'); "
        "heavy = {'matplotlib', 'seaborn', 'scipy', 'sklearn', 'pandas', 'h5py', 'optuna', 'rich', 'typer', 'joblib'}; "
        "reports = ('benchmark.show', 'benchmark.tables'); "
        "print(heavy & set(sys.modules), [name for name in sys.modules if name.startswith(reports)])"
    )
    assert python(code) == "set() []"
