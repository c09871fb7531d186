"""Who may import whom, read from the source; and what `import hf_curate` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_curate

ROOT = Path(hf_curate.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__init__.py"
}
FACTS = {"errors", "rows", "groups", "chat", "steps", "answers"}
"""The rooms at the bottom: they know rows, and no model."""

SCORER_BASE = {f"scorers.{name}" for name in ("base", "checks", "groups", "model", "reading")}
"""What a room beside the scorers needs to be one: rollouts are made by a scorer too."""
VERIFIERS = {f"rollouts.{name}" for name in ("verify", "checkers", "countdown", "mathematics", "functions")}
"""They know rows, and no model, like the rooms at the bottom."""

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    **dict.fromkeys(FACTS - {"errors"}, FACTS),
    "weights": {"errors", "rows", "hub.resolve"},
    "models": {*FACTS, "weights", "gradients.head"},
    "memory": set(),
    "batches": {*FACTS, "models", "memory"},
    "gradients": {*FACTS, "models", "memory", "batches", "gradients"},
    "scorers": {*FACTS, "stats", "memory", "sources", "weights", "models", "batches", "gradients", "scorers"},
    "rollouts": {*FACTS, "weights", "models", "memory", "batches", "rollouts", *SCORER_BASE},
    "budgets": {"errors", "stats"},
    "stats": {"errors"},
    "sources": {"errors", "hub.resolve"},
    "scored": {"errors"},
    "measures": {"groups", "budgets", "scored"},
    "comparisons": {"errors", "budgets", "stats", "scored", "measures"},
    "nested": {"budgets", "scored", "measures"},
    "profiles": {"stats", "scored", "measures"},
    "account": {
        *("rows", "budgets", "scored", "measures", "comparisons", "nested", "profiles", "sources"),
        *("hub.evidence", "hub.lines", "hub.manifest"),
    },
    "selection": {"errors", "budgets", "scored", "measures", "account", "hub"},
    "plots": {"errors", "hub.markdown", "plots"},
    "hub": {"errors", "hub", "plots", "selection"},
    "runs": {"errors", "sources", "batches", "scorers", "scored", "comparisons", "runs"},
    "inspect": {
        *("errors", "rows", "groups", "steps", "measures", "comparisons", "sources", "runs", "hub", "scorers.either")
    },
    "demo": {"errors", "demo", "runs", "rollouts", "scorers", "selection", "gradients", "sources", "hub", "report"},
    "curriculum": {"errors", "budgets", "hub.manifest", "selection", "curriculum"},
    "integrations": {
        *("errors", "weights", "models", "batches", "gradients", "scorers", "rollouts", "curriculum", "integrations"),
        "runs.digest",
    },
    "inputs": {"errors", "sources", "runs"},
    "scoring": {"errors", "rows", "inputs", "scorers"},
    "plain_yaml": {"errors"},
    "report": {*FACTS, "scored", "plots", "hub", "selection", "runs.stored", "report"},
    "recheck": {
        *("errors", "budgets", "comparisons", "scored", "stats", "sources", "weights", "hub", "plots", "selection"),
        *("rollouts.verify", "recheck"),
    },
    "commands": {"errors", "scoring", "inspect", "runs.local", "hub", "report", "recheck", "demo"},
    "spelling": {"rollouts.verify"},
    "recipe": {"*"},
    "stages": {"*"},
    "cli": {"*"},
}
DOORS: dict[str, set[str]] = {
    "scorers.learnalign": {"rollouts.rollouts"},
    "runs.replay": {"scoring", "rollouts.verify"},
    "runs.probe": {"selection"},
}
"""What single modules may import beside that: a warmed-up policy samples for itself, and a run's recipe is written in
the words of the command line, and a dry run shows the card of a selection."""

FORBIDDEN_PACKAGES = {
    "memory": {"torch", "transformers", "datasets", "numpy"},
    **{
        name: {"torch", "transformers", "datasets", "huggingface_hub", "jinja2", "matplotlib", "peft"}
        for name in FACTS
    },
    "budgets": {"torch", "transformers", "datasets", "huggingface_hub", "pyarrow", "pandas"},
    "stats": {"torch", "transformers", "datasets", "huggingface_hub", "pyarrow", "pandas"},
    "gradients": {"datasets", "huggingface_hub", "jinja2", "matplotlib", "pyarrow"},
    **{name: {"torch", "transformers", "datasets", "trl", "httpx"} for name in VERIFIERS},
    "hub": {"torch", "transformers", "peft"},
    "scored": {"torch", "transformers", "peft"},
    "measures": {"torch", "transformers", "peft"},
    "comparisons": {"torch", "transformers", "peft"},
    "nested": {"torch", "transformers", "peft"},
    "profiles": {"torch", "transformers", "peft"},
    "account": {"torch", "transformers", "peft"},
    "selection": {"torch", "transformers", "peft"},
    "sources": {"torch", "transformers", "peft"},
    "plots": {"torch", "transformers", "datasets"},
    "report": {"torch", "transformers", "peft"},
    "recheck": {"torch", "transformers", "peft"},
    "curriculum": {"torch", "transformers", "peft", "trl"},
    "runs": {"torch", "transformers", "peft"},
}
NUMPY_ONLY = {"budgets", "stats"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports at its top and inside functions, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for line in block.body
        for node in ast.walk(line)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """The rooms and modules of ours that a file imports."""
    names = {name.removeprefix("hf_curate.") for name in imports(path) if name.startswith("hf_curate.")}
    return {name for name in names if name in FILES or (ROOT / name.replace(".", "/") / "__init__.py").is_file()}


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_the_rooms_below_it(module: str) -> None:
    allowed = FACTS | VERIFIERS if module in VERIFIERS else ALLOWED[room(module)] | DOORS.get(module, set())
    strangers = {name for name in ours(FILES[module]) if not {"*", name, room(name)} & allowed}
    assert not strangers


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_the_packages_of_its_room(module: str) -> None:
    packages = {room(name) for name in imports(FILES[module])}
    assert not packages & FORBIDDEN_PACKAGES.get(module, FORBIDDEN_PACKAGES.get(room(module), set()))
    if module in NUMPY_ONLY:
        assert packages - set(sys.stdlib_module_names) <= {"numpy", "hf_curate"}


def test_every_room_has_a_rule_and_every_rule_a_room() -> None:
    assert {room(module) for module in FILES} == set(ALLOWED)


def test_ray_is_imported_by_its_engine_alone() -> None:
    engine = {"runs.ray", "runs.ray_cluster"}
    assert {module for module, path in FILES.items() if "ray" in {room(name) for name in imports(path)}} == engine


def test_scorers_and_hub_do_not_know_each_other() -> None:
    for module, path in FILES.items():
        rooms = {room(name) for name in ours(path)}
        if room(module) in ("hub", "selection", "account", "comparisons", "measures", "scored", "budgets"):
            assert not rooms & {"scorers", "gradients", "models", "weights", "batches", "runs"}
        if room(module) in ("scorers", "gradients", "batches"):
            assert not rooms & {
                "hub",
                "selection",
                "account",
                "comparisons",
                "measures",
                "scored",
                "budgets",
                "runs",
                "report",
            }


def loaded_by(code: str, *names: str) -> list[str]:
    script = f"import sys\n{code}\nprint([n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])


HEAVY = (
    "ray",
    "torch",
    "transformers",
    "matplotlib",
    "peft",
    "datasets",
    "huggingface_hub",
    "numpy",
    "jinja2",
    "pyarrow",
)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import hf_curate; dir(hf_curate)", *HEAVY) == []
    assert loaded_by("import hf_curate.cli, hf_curate.errors", *HEAVY) == []


@pytest.mark.parametrize("command", ["--help", "score --help", "select --help", "--version"])
def test_the_help_of_the_command_line_loads_nothing_heavy(command: str) -> None:
    code = f"""
from hf_curate.cli import main
try:
    main({command.split()!r})
except SystemExit as ended:
    assert not ended.code, ended.code
"""
    assert loaded_by(code, *HEAVY) == []


def test_using_what_needs_no_model_loads_no_torch() -> None:
    code = "from hf_curate import select, load_curated, Card, score, Selection; from hf_curate import inspect, sources"
    assert loaded_by(code, "transformers", "matplotlib", "peft", "torch") == []
    assert loaded_by("import hf_curate.runs.resumable, hf_curate.runs.workers", "ray") == []
    code = "from hf_curate.demo import MODEL; from hf_curate.weights import ModelSource as Source"
    named = f"{code}; Source.of('org/name'); Source.of(MODEL).identity()"
    made = "from hf_curate import verifier; [verifier(n) for n in ('exact', 'math', 'choice', 'countdown', print)]"
    assert loaded_by(made, "transformers", "datasets", "torch", "sympy", "pebble", "trl") == []
    assert loaded_by(named, "transformers", "matplotlib", "peft", "torch") == []


def test_the_public_names_are_there_and_others_are_not() -> None:
    for name in hf_curate.__all__:
        assert getattr(hf_curate, name) is not None
    assert set(hf_curate.__all__) <= set(dir(hf_curate))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_curate.nothing
