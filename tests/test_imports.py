"""Imports point one way, cost nothing and do nothing."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src"
LAYERS = [
    {"errors", "spec", "config", "record", "runs", "prompts"},
    {"rng", "schedule", "denoise", "samplers", "images", "labels", "language"},
    {"shortcuts", "unet", "vae", "tiny_vae", "text", "bert", "vision", "tokenizers", "tokens"},
    {"checkpoints", "builtin", "compiled", "engine", "int8", "memory", "hub", "licences", "numerics", "translate"},
    {"drawing", "reading", "recording", "starting", "workers"},
    {"localize", "data", "evaluate", "safety", "provenance", "bench"},
    {"serve", "study", "study_picture", "study_report"},
    {
        *("cli", "verbs", "verbs_bench", "verbs_evaluate", "verbs_provenance", "verbs_safety", "verbs_serve"),
        *("verbs_tokenizer", "verbs_training"),
        *("console", "consent", "__init__", "__main__"),
    },
]
SIBLINGS = 5  # this layer's packages don't see each other, except:
ACROSS = {
    ("localize", "kotoe.data.shards"),
    ("localize", "kotoe.evaluate.metrics"),
    ("evaluate", "kotoe.data.emoji"),  # the suite's world is the one the model was trained on
    ("evaluate", "kotoe.data.captions"),
    ("bench", "kotoe.localize"),
}
BELOW_SERVE = {"safety", "provenance"}  # all that serve sees of layer 5
MATHS = {"torch", "numpy", "PIL"}  # what layer 1 may import from outside
# test dependencies, never at run time
ORACLES = {"diffusers", "transformers", "accelerate", "scipy", "pytest", "keras", "keras_cv", "webdataset", "peft"}
# the one optional use of one: an extra, imported inside a function, when a prompt has to be translated
OPTIONAL = {("kotoe.translate", "transformers")}
SWITCHES = {
    "torch.manual_seed", "torch.set_default_dtype", "torch.set_default_device", "torch.set_grad_enabled",
    "numpy.random.seed", "np.random.seed", "random.seed", "warnings.filterwarnings", "warnings.simplefilter",
}  # fmt: skip
SWITCHES_OF = {"kotoe.rng": {"torch.manual_seed"}}  # inside fork_rng, for torch's own initialisers


def _files() -> list[Path]:
    return sorted((SRC / "kotoe").rglob("*.py"))


def _part(module: str) -> str:
    """`kotoe.data.cldr` -> `data`; `kotoe` -> `__init__`."""
    return (module.split(".") + ["__init__"])[1]


def _layer(part: str) -> int:
    for number, parts in enumerate(LAYERS):
        if part in parts:
            return number
    raise AssertionError(f"src/kotoe/{part} has no layer: give it one in tests/test_imports.py")


def _module(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also those inside functions; `.x` is said in full."""
    package = module if (SRC / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            if name == "kotoe":
                yield from ((node.lineno, f"kotoe.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, name


def _at_import(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported: not what is inside functions."""
    for statement in statements:
        if isinstance(statement, ast.ClassDef):
            yield from _at_import(statement.body)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement


def complaints(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module with this source."""
    part, found = _part(module), []
    layer = _layer(part)
    tree = ast.parse(source)
    at_import = {line for statement in _at_import(tree.body) for line, _ in _imports(module, statement)}
    for line, name in _imports(module, tree):
        top = name.split(".")[0]
        if top in ORACLES and ((module, top) not in OPTIONAL or line in at_import):
            found.append(f"{module}:{line} imports {top}, a test dependency")
        if top != "kotoe":
            if layer == 0 and top not in sys.stdlib_module_names:
                found.append(f"{module}:{line} imports {top}, layer 0 has the standard library only")
            if layer == 1 and top not in MATHS | set(sys.stdlib_module_names):
                found.append(f"{module}:{line} imports {top}, layer 1 has {', '.join(sorted(MATHS))}")
            continue
        other = _part(name)
        if other == "__version__":
            continue  # a constant of the package, not a module above
        if _layer(other) > layer:
            found.append(f"{module}:{line} imports {name}, which is above it")
        elif layer == SIBLINGS == _layer(other) and other != part:
            if not any(part == a and (name == b or name.startswith(b + ".")) for a, b in ACROSS):
                found.append(f"{module}:{line} imports {name}, its sibling")
        elif part == "serve" and _layer(other) == SIBLINGS and other not in BELOW_SERVE:
            found.append(f"{module}:{line} imports {name}, which serve doesn't see")
    return found


def test_imports_point_down() -> None:
    found = [c for path in _files() for c in complaints(_module(path), path.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kotoe.schedule", "from kotoe.unet import UNet"),
        ("kotoe.schedule", "def f():\n    import kotoe.drawing"),
        ("kotoe.errors", "import torch"),
        ("kotoe.samplers", "import rich"),
        ("kotoe.unet", "from diffusers import UNet2DConditionModel"),
        ("kotoe.data.cldr", "from kotoe.evaluate import metrics"),
        ("kotoe.localize.fit", "from kotoe import data"),
        ("kotoe.serve.app", "import kotoe.localize.fit"),
        ("kotoe.drawing", "from kotoe import cli"),
        ("kotoe.translate", "import transformers"),
        ("kotoe.translate", "try:\n    import transformers\nexcept ImportError:\n    pass"),
        ("kotoe.translate", "class A:\n    import transformers"),
        ("kotoe.translate", "def f():\n    import diffusers"),
        ("kotoe.drawing", "def f():\n    import transformers"),
        ("kotoe.drawing", "from .cli import main"),
        ("kotoe.data.cldr", "from ..evaluate import metrics"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert complaints(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kotoe.unet", "from kotoe.spec import UNetSpec"),
        ("kotoe.localize.fit", "from kotoe.evaluate.metrics import mean"),
        ("kotoe.serve.app", "from kotoe.safety import check"),
        ("kotoe.cli", "from kotoe.data import emoji"),
        ("kotoe.translate", "class A:\n    def f(self):\n        import transformers"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert not complaints(module, source)


def _name(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def effects(module: str, source: str) -> list[str]:
    """Global switches anywhere, and calls at module level that are there for their effect."""
    tree, found = ast.parse(source), []
    scoped = {item.context_expr for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items}
    switches = SWITCHES - SWITCHES_OF.get(module, set())
    for node in ast.walk(tree):
        if node not in scoped and isinstance(node, ast.Call) and _name(node.func) in switches:
            found.append(f"{node.lineno}: {_name(node.func)} is a switch for the whole process")
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Subscript) and _name(t.value) == "os.environ" for t in targets):
            found.append(f"{node.lineno}: writes the environment")
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if not _name(node.value.func).startswith("app."):  # the command line's own table
                found.append(f"{node.lineno}: {ast.unparse(node)[:60]} runs at import")
    return found


def test_nothing_happens_at_import() -> None:
    found = [f"{_module(p)}:{e}" for p in _files() for e in effects(_module(p), p.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_an_effect_is_seen() -> None:
    assert effects("kotoe.unet", "import torch\ntorch.manual_seed(0)")
    assert effects("kotoe.unet", "def f():\n    torch.set_grad_enabled(False)")
    assert effects("kotoe.unet", "Path('cache').mkdir()")
    assert effects("kotoe.unet", "os.environ['A'] = '1'")
    assert not effects("kotoe.unet", "def f():\n    with torch.set_grad_enabled(False):\n        pass")
    assert not effects("kotoe.unet", "g = torch.Generator()\ndef f():\n    g.manual_seed(0)")


HELP = """
import sys
sys.argv = ["kotoe", "--help"]
from kotoe.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
"""
LIGHT = """
import sys
heavy = {"torch", "numpy", "PIL", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
"""


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("code", ["import kotoe", HELP], ids=["import", "help"])
def test_light(code: str) -> None:
    """No torch, numpy or PIL, and at most 0.3 s for the whole process (best of 5).

    Processor time: on an idle machine that is the time on the clock, and on a busy one it doesn't depend on the others.
    """
    best = float("inf")
    for _ in range(5):
        start = _children_seconds()
        done = subprocess.run([sys.executable, "-c", code + LIGHT], capture_output=True, text=True)
        best = min(best, _children_seconds() - start)
        assert done.returncode == 0, done.stderr
        if best <= 0.3:
            break
    assert best <= 0.3, f"{best:.2f} s"


def test_public_names_stay_what_they_are() -> None:
    """No module has the name of a public function: importing it would put it in the function's place."""
    import kotoe

    public = {name for name in kotoe.__all__ if name != "__version__"}
    assert not {path.stem for path in (SRC / "kotoe").iterdir()} & public
    assert all(callable(getattr(kotoe, name)) for name in public)
