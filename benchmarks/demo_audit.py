"""The audit of every proxy on the demo model: rank correlation with exact gradients, and the time ratio.

    python benchmarks/demo_audit.py

Writes results/demo_audit.json. The parameter set is part of every row: rankings of proxies depend on it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from hf_curate import GraceScorer
from hf_curate.demo import MODEL, load_traces

ROWS = 128


def main() -> None:
    warnings.simplefilter("ignore", UserWarning)  # no warm-up: said in the log
    traces = load_traces()
    results = []
    print(f"{'proxy':<16}{'parameters':<12}{'alignment':>10}{'history':>9}{'value':>8}{'time ratio':>12}")
    for parameters in ("linear", "all"):
        for proxy in ("representation", "outer", "last"):
            scorer = GraceScorer(MODEL, proxy=proxy, dtype="float32")
            found = scorer.audit(traces, ROWS, parameters=parameters)
            results.append(found)
            rho = found["spearman"]
            print(
                f"{proxy:<16}{parameters:<12}{rho['alignment']:>10.2f}{rho['history']:>9.2f}{rho['value']:>8.2f}"
                f"{found['time_ratio']:>12.2f}"
            )
    path = Path(__file__).parent / "results" / "demo_audit.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
