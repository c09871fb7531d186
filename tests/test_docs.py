"""README and the other pages keep what they promise."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import warm

import hf_curate

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/LOG.md", "docs/online.md", "docs/ray.md"),
    *("examples/evidence/README.md", "examples/evidence/RESULTS.md"),
)


def test_no_page_has_a_dead_relative_link_or_an_unfilled_table() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        assert not re.findall(r"\b[A-Z]+_TABLE\b|\bTODO\b", text), page
        for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} -> {target}"


def test_the_code_of_the_readme_uses_public_names_only() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "hf_curate":
                assert all(hasattr(hf_curate, name.name) for name in node.names)


def test_the_table_of_speed_in_the_readme_is_that_of_the_recorded_results() -> None:
    script = ROOT / "benchmarks" / "table.py"
    told = warm.run([sys.executable, str(script)], check=True).stdout
    assert len(told.splitlines()) > 20
    assert f"<!-- benchmarks/table.py -->\n{told}<!-- until here -->\n" in (ROOT / "README.md").read_text("utf-8")


def test_the_audit_in_the_readme_is_the_recorded_one() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    audits = json.loads((ROOT / "benchmarks" / "results" / "demo_audit.json").read_text("utf-8"))
    for proxy in ("representation", "outer", "last"):
        of = {one["parameters"]: f"{one['spearman']['value']:.2f}" for one in audits if one["proxy"] == proxy}
        assert f"| `{proxy}` | {of['linear']} | {of['all']} |" in text


def test_the_files_that_the_readme_draws_are_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    house = text[text.index("## The house") :]
    for name in re.findall(r"\b[\w/]+\.py\b", house):
        assert (ROOT / "hf_curate" / name).is_file() or (ROOT / name).is_file(), name


def test_no_page_holds_a_placeholder() -> None:
    for page in PAGES:
        for line in (ROOT / page).read_text("utf-8").splitlines():
            assert not re.fullmatch(r"[A-Z_]{4,}", line.strip()), (page, line)
