"""The shape of the package, read from its syntax trees: layers, sizes, forbidden calls.

Each rule is a function from modules to complaints; each is shown to complain about a
tree that breaks it.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Layer of every module; imports go to a smaller number. A module that is not here has
#: no place yet: say which layer it belongs to.
LAYERS = {
    **dict.fromkeys(("errors", "units", "properties", "files"), 0),
    **dict.fromkeys(
        ("batch", "state", "tensorfile", "config", "device", "info", "runfolder"), 1
    ),
    **dict.fromkeys(("neighbors", "nn", "data", "dataset", "frames", "vetting"), 2),
    **dict.fromkeys(("region", "constraints", "trajectory"), 2),
    "coordinates": 1,
    "graph": 2,
    "models.base": 2,  # the vocabulary that models and heads share
    **dict.fromkeys(("models", "heads"), 3),
    **dict.fromkeys(("potential", "inference", "recipe", "evaluation", "trainer"), 4),
    **dict.fromkeys(("committee", "rundata"), 4),
    **dict.fromkeys(("forcefield", "start", "dynamics", "hessian", "spectra"), 4),
    "relaxation": 4,
    **dict.fromkeys(("calculator", "train", "md", "scanning", "crossing"), 5),
    **dict.fromkeys(("nbody", "harmonic"), 5),
    **dict.fromkeys(("demo", "report"), 6),
    "cli": 7,
}

#: Labelling stands beside the layers: it uses 0 to 2, and only ``cli`` uses it.
LABELLING = ("journal", "response", "scf", "dft", "workers", "labels")
LABELLING_MAY_USE = 2

#: What models may import of one another.
SHARED_BY_MODELS = ("models.base", "models.edgewise")

#: Modules of these layers do not import each other.
STRANGERS = (3, 5)

MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS = 400, 60, 8

FORBIDDEN = {
    "pickle": r"\bpickle\b",
    "joblib": r"\bjoblib\b",
    "torch.load": r"(?<!safetensors\.)\btorch\.(load|save)\(",
    "eval": r"(?<![\w.])(eval|exec)\(",
    "yaml": r"\byaml\b",
    "shell": r"shell\s*=\s*True|\bos\.system\(",
    "numpy pickles": r"allow_pickle\s*=\s*True",
    "path of a machine": r"[\"'](/work|/home|/root|/tmp|/Users)\b",
}

#: Where a forbidden name is the subject of the code, and why it is harmless there.
EXCEPTIONS = {
    ("testing.calculator", "pickle"): "reads back only what it wrote itself",
}


@dataclass(frozen=True)
class Module:
    """A source file: dotted name inside the package, text and tree."""

    name: str
    text: str
    tree: ast.Module
    is_package: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def modules_in(package: Path) -> list[Module]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(p for p in parts if p != "__init__")
        text = path.read_text()
        found.append(Module(name, text, ast.parse(text), path.name == "__init__.py"))
    return found


def imports(module: Module) -> Iterator[str]:
    """Every absolute name that a module imports, wherever the statement stands."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def neighbors(module: Module, known: set[str]) -> set[str]:
    """Modules of the package that a module imports."""
    inside = {name.removeprefix("mlff.") for name in imports(module)}
    return (inside & known) - {module.name, ""}


# Rules


def upward_imports(modules: list[Module]) -> list[str]:
    known = {m.name for m in modules}
    out = []
    for module in modules:
        if module.name in ("",) or module.top == "testing":
            continue
        for other in sorted(neighbors(module, known)):
            place = other if other in LAYERS else other.split(".")[0]
            inside = other.split(".")[0] == module.top
            if not inside and not _allowed(module.top, place):
                out.append(f"{module.name} imports {other}")
    return out


def _allowed(importer: str, imported: str) -> bool:
    if imported in LABELLING:
        return importer == "cli" or importer in LABELLING
    if importer in LABELLING:
        return LAYERS.get(imported, 99) <= LABELLING_MAY_USE
    if imported not in LAYERS or importer not in LAYERS:
        return False
    below = LAYERS[importer] - LAYERS[imported]
    return below > 0 or (below == 0 and LAYERS[importer] not in STRANGERS)


def modules_without_a_layer(modules: list[Module]) -> list[str]:
    placed = {*LAYERS, *LABELLING, "testing", ""}
    return [m.name for m in modules if m.top not in placed]


def models_that_know_each_other(modules: list[Module]) -> list[str]:
    known = {m.name for m in modules}
    return [
        f"{module.name} imports {other}"
        for module in modules
        if module.top == "models" and module.name != "models"
        for other in sorted(neighbors(module, known))
        if other.startswith("models") and other not in SHARED_BY_MODELS
    ]


def contracts_that_reach_too_far(modules: list[Module]) -> list[str]:
    known = {m.name for m in modules}
    return [
        f"{module.name} imports {other}"
        for module in modules
        if module.top == "testing"
        for other in sorted(neighbors(module, known))
        if other.split(".")[0] in ("cli", *LABELLING)
    ]


def import_cycles(modules: list[Module]) -> list[str]:
    known = {m.name for m in modules}
    # A package's __init__ names its members; that is no cycle of theirs.
    graph = {m.name: neighbors(m, known) for m in modules if m.name}
    out, settled = [], set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            out.append(" → ".join((*trail[trail.index(name) :], name)))
        elif name not in settled:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            settled.add(name)

    for name in graph:
        visit(name, ())
    return out


def foreign_imports(modules: list[Module]) -> list[str]:
    return [
        f"{module.name} imports {name}"
        for module in modules
        for name in imports(module)
        if name.split(".")[0] in ("tests", "data_gen", "benchmarks", "notebooks")
    ]


def long_files(modules: list[Module]) -> list[str]:
    sizes = {m.name: len(m.text.splitlines()) for m in modules}
    return [f"{name}: {n} lines" for name, n in sizes.items() if n > MAX_FILE]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: Module) -> Iterator[Function]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node


def long_functions(modules: list[Module]) -> list[str]:
    """Functions whose code, without the docstring, is too long."""
    out = []
    for module in modules:
        for node in functions(module):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None and first.end_lineno is not None:
                length -= first.end_lineno - first.lineno + 1
            if length > MAX_FUNCTION:
                out.append(f"{module.name}.{node.name}: {length} lines")
    return out


def many_arguments(modules: list[Module]) -> list[str]:
    out = []
    for module in modules:
        for node in functions(module):
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = sum(argument.arg not in ("self", "cls") for argument in given)
            if count > MAX_ARGUMENTS:
                out.append(f"{module.name}.{node.name}: {count} arguments")
    return out


def undocumented(modules: list[Module]) -> list[str]:
    """Public modules, classes and functions without a docstring."""
    out = []
    for module in modules:
        if ast.get_docstring(module.tree) is None:
            out.append(module.name or "__init__")
        out += [f"{module.name}.{name}" for name in _bare(module.tree)]
    return out


def _bare(parent: ast.AST, prefix: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_"):
            name = prefix + node.name
            if ast.get_docstring(node) is None and not _overloads(node):
                yield name
            if isinstance(node, ast.ClassDef):
                yield from _bare(node, f"{name}.")


def _overloads(node: ast.AST) -> bool:
    marks = getattr(node, "decorator_list", [])
    return any(isinstance(m, ast.Name) and m.id == "overload" for m in marks)


def forbidden_calls(modules: list[Module]) -> list[str]:
    """Item 68: nothing that runs what a file says. Docstrings may speak of it."""
    out = []
    for module in modules:
        code = ast.unparse(_WithoutDocstrings().visit(ast.parse(module.text)))
        for what, pattern in FORBIDDEN.items():
            out += [
                f"{module.name}: {what}: {line.strip()}"
                for line in code.splitlines()
                if re.search(pattern, line) and (module.name, what) not in EXCEPTIONS
            ]
    return out


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Pass()
        return node


RULES = (
    upward_imports,
    modules_without_a_layer,
    models_that_know_each_other,
    contracts_that_reach_too_far,
    import_cycles,
    foreign_imports,
    long_files,
    long_functions,
    many_arguments,
    undocumented,
    forbidden_calls,
)


@pytest.fixture(scope="module")
def package() -> list[Module]:
    found = modules_in(ROOT / "mlff")
    assert {"potential", "cli", "nn.radial", "models.cmret"} <= {m.name for m in found}
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule, package):
    complaints = rule(package)
    assert not complaints, "\n".join(complaints)


def test_recipes_use_nothing_above_labelling_and_data():
    # What ships a trained model is made of the public names instead.
    makers = {"ship"}
    recipes = [m for m in modules_in(ROOT / "data_gen") if m.name not in makers]
    assert {"ch2", "nbody"} <= {m.name for m in recipes}
    names = {name for recipe in recipes for name in imports(recipe)}
    used = {name.split(".")[1] for name in names if name.startswith("mlff.")}
    assert used
    assert all(
        name in LABELLING or LAYERS.get(name, 99) <= LABELLING_MAY_USE for name in used
    )


# Each rule complains


GOOD = '"""Doc."""\n'


def tree_with(folder: Path, files: dict[str, str]) -> list[Module]:
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(GOOD + text)
    return modules_in(folder)


BROKEN = {
    "upward": (
        upward_imports,
        {"batch": "from mlff.potential import load\n"},
        "potential",
    ),
    "upward inside a function": (
        upward_imports,
        {"state": "def f():\n    import mlff.cli\n"},
        "state imports cli",
    ),
    "siblings of layer 5": (
        upward_imports,
        {"md": "import mlff.relax\n", "relax": ""},
        "md imports relax",
    ),
    "a head that knows a model": (
        upward_imports,
        {"heads": "from mlff.models.cmret import CMRET\n", "models/cmret": ""},
        "heads imports models.cmret",
    ),
    "a potential that labels": (
        upward_imports,
        {"potential": "from mlff import dft\n", "dft": ""},
        "potential imports dft",
    ),
    "labels that know a model": (
        upward_imports,
        {"labels": "from mlff.potential import load\n"},
        "labels imports potential",
    ),
    "no layer": (modules_without_a_layer, {"utils": ""}, "utils"),
    "families that know each other": (
        models_that_know_each_other,
        {"models/painn": "from mlff.models.cmret import CMRET\n", "models/cmret": ""},
        "models.painn imports models.cmret",
    ),
    "contracts that know the command line": (
        contracts_that_reach_too_far,
        {"testing/models": "from mlff.cli import main\n", "cli": ""},
        "testing.models imports cli",
    ),
    "cycle": (
        import_cycles,
        {
            "batch": "import mlff.state\n",
            "state": "def f():\n    from mlff import units\n",
            "units": "from mlff.batch import x\n",
        },
        "batch → state → units → batch",
    ),
    "tests": (foreign_imports, {"batch": "from tests import toys\n"}, "imports tests"),
    "long file": (long_files, {"batch": "x = 1\n" * 400}, "401 lines"),
    "long function": (
        long_functions,
        {"batch": "def f():\n" + "    x = 1\n" * 60},
        "batch.f: 61 lines",
    ),
    "many arguments": (
        many_arguments,
        {"batch": "class A:\n    def f(self, a, b, c, d, e, *, g, h, i, j): ...\n"},
        "batch.f: 9 arguments",
    ),
    "undocumented": (
        undocumented,
        {"batch": 'class A:\n    """Doc."""\n    def f(self): ...\n'},
        "batch.A.f",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_complains_about_a_tree_that_breaks_it(name, tmp_path):
    rule, files, complaint = BROKEN[name]
    whole = {"cli": "", "potential": "", "batch": "", "state": "", **files}
    found = rule(tree_with(tmp_path, whole))
    assert any(complaint in line for line in found), found


def test_every_rule_is_shown_to_complain():
    shown: set[Callable[[list[Module]], list[str]]] = {r for r, _, _ in BROKEN.values()}
    assert shown | {forbidden_calls} == set(RULES)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "weights = torch.load(path)",
        "torch.save(model, path)",
        "eval(text)",
        "x = exec(text)",
        "import yaml",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "np.load(path, allow_pickle=True)",
        "folder = '/tmp/x'",
        'folder = "/home/me/data"',
    ],
)
def test_forbidden_calls_are_found(line, tmp_path):
    assert len(forbidden_calls(tree_with(tmp_path, {"batch": line}))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "def evaluate(): ...",
        "load(path)",
        "tensors = safetensors.torch.load(content)",
        '"""No pickle here."""',
    ],
)
def test_what_only_looks_like_them_is_not(line, tmp_path):
    assert forbidden_calls(tree_with(tmp_path, {"batch": line})) == []


def test_a_docstring_does_not_make_a_function_long(tmp_path):
    text = 'def f():\n    """' + "Doc.\n" * 80 + '    """\n    return 1\n'
    assert long_functions(tree_with(tmp_path, {"batch": text})) == []
