"""The README's table of speed, from the results of the other scripts.

    python benchmarks/table.py [--write]

Prints it; --write puts it into README.md, between the two comments that say so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks/table.py -->\n", "<!-- until here -->\n"


def result(name: str) -> dict[str, Any]:
    [path] = (ROOT / "benchmarks" / "results").glob(f"{name}_*_cpu.json")
    return json.loads(path.read_text("utf-8"))


def spread(ratio: dict[str, float]) -> str:
    return "{median:.2f} ({min:.2f} - {max:.2f})".format(**ratio)


def lines() -> Iterator[tuple[str, str, str]]:
    """(what, figure, script)"""
    forward = result("grace_over_forward")
    for dtype in ("float32", "bfloat16"):
        ratios = forward[dtype]["28 layers"]["ratio"]
        for proxy in ("representation", "outer"):
            name = f"GRACE, `{proxy}`, over a forward with cross-entropy, {dtype}"
            yield name, spread(ratios[proxy]), "grace_over_forward"
        floor = forward[dtype]["outer over its floor, 28 layers"]
        yield f"`outer` over a forward and one more head-sized product, {dtype}", spread(floor), "grace_over_forward"
    plain = result("grace_over_plain")
    for way, what in (("(a)", "padded batches with full logits"), ("(b)", "one call of autograd for each step")):
        found = next(own for name, own in plain.items() if name.startswith(way))
        ratio = next(own for name, own in found["ratio"].items() if name.startswith(way))
        yield f"{what}, over GRACE", spread(ratio), "grace_over_plain"
    run = result("score_end_to_end")
    yield "share of `score()` that is spent in the model", f"{run['share in the model']:.1%}", "score_end_to_end"
    yield "padding of its batches, of all tokens", f"{run['padding']['many']:.1%}", "score_end_to_end"
    yield "what the host does for a token", f"{run['host, us a token']:.1f} us", "score_end_to_end"
    for policy, found in result("rollouts_over_generate")["results"].items():
        name = f"sampling over `generate`, tokens per processor second, {policy}"
        yield name, spread(found["over_generate"]["sample"]), "rollouts_over_generate"
    for share, found in result("policy_over_bergson")["shares"].items():
        for way in ("t, dot, corr", "cosine and stderr"):
            what = f"GradAlign, {way}, over Bergson 2.5.1, {share} of the tokens in the prompts"
            yield what, spread(found["ratio"][way]), "policy_over_bergson"
        gain = spread(found["gain"]["cosine and stderr"])
        yield f"the same without a shared prompt, over with one, {share}", gain, "policy_over_bergson"
    start = result("start_up")
    beyond = start["beyond datasets"]["import datasets, hf_curate"]
    yield "`import hf_curate`, beyond `import datasets`", f"{beyond:.2f} s", "start_up"
    yield "`hf-curate --help`", f"{start['median_seconds']['hf-curate --help']:.2f} s", "start_up"
    for name, curve in result("cost_curves")["curves"].items():
        sizes = [int(size) for size in curve["seconds"]]
        yield f"exponent of time, {name}, {sizes[0]:,} to {sizes[-1]:,}", f"{curve['exponent']:.2f}", "cost_curves"


def table() -> str:
    where = result("grace_over_forward")["where"]
    dates = sorted({result(script)["where"]["date"] for _, _, script in lines()})
    versions = ", ".join(f"{name} {where['versions'][name]}" for name in ("torch", "transformers", "datasets"))
    rows = [
        f"{where['processor']}, {where['cores']} cores, {where['threads']} threads; {versions}; {' to '.join(dates)}.",
        "Medians (least - most) of alternating rounds.",
        "",
        "| | | `benchmarks/` |",
        "|---|---|---|",
        *(f"| {what} | {figure} | `{script}.py` |" for what, figure, script in lines()),
    ]
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into README.md")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    readme = ROOT / "README.md"
    before, rest = readme.read_text("utf-8").split(BEGIN)
    readme.write_text(f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
