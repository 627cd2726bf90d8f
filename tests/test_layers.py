"""Rules that hold for the whole tree, checked from the syntax trees and in fresh interpreters."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Imports go down only. One name a layer's room, "pipelines" standing for the scripts, "medseg" for medseg/__init__.py.
LAYERS = (
    ("medseg",),
    ("pipelines", "cli"),
    ("search", "crossvalidation", "audit"),
    ("serving",),
    ("exchange",),
    ("training", "report"),
    ("inference",),
    ("preparation", "evaluation", "runner"),
    ("adapters",),
    ("manifest", "networks", "tracking", "augmentation"),
    ("config", "imaging"),
    ("durable",),
    ("errors",),
)
LEVEL = {room: len(LAYERS) - i for i, rooms in enumerate(LAYERS) for room in rooms}
# Stages run their cases through the runner. A script is a verb: it uses the command line's entry, `medseg` starts it.
SAME_LEVEL = {
    ("preparation", "runner"),
    ("evaluation", "runner"),
    ("pipelines", "cli"),
    ("cli", "pipelines"),
}
TRACKING_USERS = {"pipelines", "cli", "tracking"}
GRAB_BAGS = {"util", "utils", "common", "helper", "helpers", "misc"}


def python_files() -> list[Path]:
    return sorted((ROOT / "medseg").rglob("*.py")) + sorted((ROOT / "pipelines").rglob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of_file(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "pipelines":
        return "pipelines"
    return "medseg" if parts[1] == "__init__" else parts[1]


def room_of_module(name: str) -> str | None:
    """The room of ours that a dotted module name lies in, None for a foreign module."""
    parts = name.split(".")
    if parts[0] == "pipelines":
        return "pipelines"
    if parts[0] != "medseg":
        return None
    return parts[1] if len(parts) > 1 else "medseg"


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            if module == "medseg":
                yield from ((node.lineno, f"medseg.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def test_every_room_has_a_layer():
    rooms = {path.parent.name for path in (ROOT / "medseg").glob("*/__init__.py")}
    assert rooms <= set(LEVEL), "a new room needs its place in LAYERS"


def test_imports_go_down():
    wrong = []
    for path in python_files():
        room = room_of_file(path)
        for line, module in imported(tree_of(path)):
            target = room_of_module(module)
            if target is None or target == room or (room, target) in SAME_LEVEL:
                continue
            if target not in LEVEL or LEVEL[target] >= LEVEL[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_a_script_uses_only_the_entry_of_the_command_line_and_what_a_reviewer_is_shown():
    wrong = [
        f"{path.name}:{line}: {module}"
        for path in sorted((ROOT / "pipelines").glob("*.py"))
        for line, module in imported(tree_of(path))
        if room_of_module(module) == "cli" and module not in ("medseg.cli.entry", "medseg.cli.review")
    ]
    assert not wrong, "\n".join(wrong)


def test_only_tracking_imports_mlflow_and_only_scripts_and_verbs_import_tracking():
    wrong = []
    for path in python_files():
        room = room_of_file(path)
        for line, module in imported(tree_of(path)):
            foreign_mlflow = module.split(".")[0] == "mlflow" and room != "tracking"
            foreign_tracking = room_of_module(module) == "tracking" and room not in TRACKING_USERS
            if foreign_mlflow or foreign_tracking:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_grab_bag_modules():
    names = [path for folder in ("medseg", "pipelines", "tests") for path in (ROOT / folder).rglob("*")]
    ours = [path for path in names if "node_modules" not in path.parts]  # of the browser tests, others' code
    assert not [path for path in ours if path.suffix in ("", ".py") and path.stem.lower() in GRAB_BAGS]


def keyword_value(call: ast.Call, name: str) -> object:
    """The constant given for keyword ``name``, None where it is absent or no constant."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else "computed"
    return None


RUNS_CODE = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "joblib.load",
    "marshal.loads", "marshal.load", "torch.jit.load", "pandas.read_pickle", "shelve.open", "subprocess.getoutput",
    "subprocess.getstatusoutput",
}  # fmt: skip
UNPACKS = {"extractall", "unpack_archive"}


def unsafe_call(call: ast.Call) -> str | None:
    """Why ``call`` may run code or leave its folder on foreign input, or None."""
    name = ast.unparse(call.func)
    if name in RUNS_CODE:
        return name
    if name.split(".")[-1] in UNPACKS:
        return name
    if name == "torch.load" and keyword_value(call, "weights_only") is not True:
        return "torch.load without weights_only=True"
    if keyword_value(call, "shell") not in (None, False):
        return "shell=True"
    if keyword_value(call, "allow_pickle") not in (None, False):
        return "allow_pickle=True"
    return None


def test_no_call_runs_or_unpacks_what_a_stranger_wrote():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {reason}"
        for path in python_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and (reason := unsafe_call(node))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("eval(x)", True),
        ("model.eval()", False),
        ("pickle.load(f)", True),
        ("torch.load(f)", True),
        ("torch.load(f, weights_only=False)", True),
        ("torch.load(f, weights_only=True)", False),
        ("yaml.load(f)", True),
        ("yaml.safe_load(f)", False),
        ("subprocess.run(c, shell=True)", True),
        ("subprocess.run(c)", False),
        ("numpy.load(f, allow_pickle=flag)", True),
        ("numpy.load(f, allow_pickle=False)", False),
        ("tar.extractall(d)", True),
        ("shutil.unpack_archive(f)", True),
        ("os.system(c)", True),
    ],
)
def test_the_rule_for_unsafe_calls_itself(code: str, found: bool):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert (unsafe_call(call) is not None) is found


def test_a_print_belongs_to_pipelines_and_cli():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files()
        if room_of_file(path) not in ("pipelines", "cli")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert not wrong, "\n".join(wrong)


HEAVY = ("torch", "monai", "mlflow", "SimpleITK", "pydicom", "matplotlib")


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (("medseg", "medseg.manifest", "medseg.imaging", "medseg.cli.main", "medseg.cli.entry"), HEAVY),
        (("medseg.config", "medseg.durable", "medseg.errors"), (*HEAVY, "numpy", "scipy", "nibabel")),
        (
            (
                "medseg.pipelines.prepare",
                "medseg.pipelines.train",
                "medseg.pipelines.infer",
                "medseg.pipelines.evaluate",
                "medseg.cli.demo",
                "medseg.cli.schema",
            ),
            HEAVY,
        ),
    ],
    ids=["readers", "foundations", "verbs"],
)
def test_imports_stay_light(modules: tuple[str, ...], absent: tuple[str, ...]):
    # In a fresh interpreter, because this one has long imported everything.
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted({set(absent)!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_wheel_carries_every_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "medseg").rglob("__init__.py")}
    assert set(declared) == {".".join(folder.parts) for folder in folders} | {"medseg.pipelines"}
