"""Policy gradients of problems beside Bergson on the same rollouts: inner products, t statistics, norms.

    python -m venv bergson
    bergson/bin/pip install torch==2.13.0 bergson==2.5.1
    bergson/bin/pip uninstall -y torchvision torchaudio
    python benchmarks/policy_over_bergson.py --bergson bergson/bin/python

Problems of 16 rollouts with advantages of both signs, responses of log-normal length; two shares of tokens in the
prompts. The weights of all linear layers but the LM head, in both; the direction is drawn. Bergson scores rollout by
rollout in batches of its own making under the same number of tokens, and a problem's inner product is the weighted sum
of its rollouts' scores, which is compared with ours. Without --bergson ours alone, with and without a shared prompt.
Left out is the comparison of sums with a whole gradient, which a run makes on its first, second, fourth problem and so
on where no norm is wanted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from side_by_side import check_same, in_turn, show, write
from transformers import Qwen3Config, Qwen3ForCausalLM

from hf_curate.batches import Rollout
from hf_curate.gradients import inner, shared
from hf_curate.gradients.head import head_of
from hf_curate.gradients.inner import policy_products
from hf_curate.gradients.parameters import parameters_of
from hf_curate.models import LanguageModel

ROLLOUTS = 16
ADVANTAGES = [0.5, -0.5] * (ROLLOUTS // 2)
SHARES = {"half": (128, 128), "an eighth": (32, 224)}
"""Share of tokens in the prompts -> tokens of a prompt, median tokens of a response."""
SAME = 1e-4

Problem = list[Rollout]


def make_model(width: int, layers: int, vocabulary: int) -> LanguageModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    return LanguageModel(model, None, model.get_decoder(), head_of(model), torch.device("cpu"))  # type: ignore[arg-type]


def make_problems(count: int, prompt: int, response: int, vocabulary: int, spread: float) -> list[Problem]:
    rng = np.random.default_rng(0)
    problems = []
    for _ in range(count):
        ids = rng.integers(3, vocabulary, prompt).tolist()
        lengths = np.clip(rng.lognormal(np.log(response), spread, ROLLOUTS), 8, 4 * response).astype(int)
        problems.append([Rollout([*ids, *rng.integers(3, vocabulary, n).tolist()], prompt) for n in lengths])
    return problems


class Bergson:
    """Bergson in a process of its own."""

    def __init__(self, python: str, asked: dict[str, Any], place: Path) -> None:
        worker, self._said = Path(__file__).with_name("bergson_worker.py"), place / "said.txt"
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        with open(self._said, "w") as said:
            self._process = subprocess.Popen([python, str(worker)], stderr=said, **pipes)
        self._say(asked)

    def _say(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def scores(self) -> list[float]:
        """Of each rollout."""
        self._say("go")
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"Bergson's process has ended. It said:\n{self._said.read_text()[-3000:]}")
        return json.loads(line)["scores"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def sharing(model: LanguageModel, on: bool) -> Iterator[None]:
    """With a shared prompt, or as if the model had no way to share it."""
    before = shared.shares_prompts(model)
    known = shared._KNOWN[model.decoder]
    shared._KNOWN[model.decoder] = dict.fromkeys(shared.KNOWN, on and before)
    try:
        yield
    finally:
        shared._KNOWN[model.decoder] = known


def ours(model: LanguageModel, problems: list[Problem], direction: Any, on: bool, **what: bool) -> Callable[[], Any]:
    parameters = parameters_of(model.model, "linear")

    def work() -> list[float]:
        with sharing(model, on):
            found = [policy_products(model, p, ADVANTAGES, parameters, direction, **what) for p in problems]
        return [float(one.dot) for one in found]  # type: ignore[arg-type]

    return work


def one_share(model: LanguageModel, direction: Any, given: argparse.Namespace, prompt: int, response: int) -> Any:
    """Rounds over one share of tokens in the prompts, and tokens with the prompts counted for each rollout."""
    problems = make_problems(given.problems, prompt, response, model.head.vocabulary, given.spread)
    tokens = sum(len(r.input_ids) for problem in problems for r in problem)
    ways = {
        "t, dot, corr": ours(model, problems, direction, True, norm=False),
        "cosine": ours(model, problems, direction, True, per_rollout=False),
        "cosine and stderr": ours(model, problems, direction, True),
        "t, dot, corr, prompt of each": ours(model, problems, direction, False, norm=False),
        "cosine, prompt of each": ours(model, problems, direction, False, per_rollout=False),
        "cosine and stderr, prompt of each": ours(model, problems, direction, False),
    }
    with tempfile.TemporaryDirectory() as place:
        bergson = None
        if given.bergson:
            model.model.save_pretrained(f"{place}/model")
            save_file(direction, f"{place}/direction.safetensors")
            asked = {
                "model": f"{place}/model",
                "direction": f"{place}/direction.safetensors",
                "rollouts": [vars(rollout) for problem in problems for rollout in problem],
                "batch_tokens": given.batch_tokens,
                "threads": torch.get_num_threads(),
            }
            bergson = Bergson(given.bergson, asked, Path(place))

            def theirs() -> list[float]:
                scores = np.array(bergson.scores()).reshape(len(problems), ROLLOUTS)  # of losses: minus ours
                return (-(scores @ np.array(ADVANTAGES)) / ROLLOUTS).tolist()

            ways["Bergson"] = theirs
        try:
            rounds = in_turn(ways, given.rounds)
        finally:
            if bergson is not None:
                bergson.close()
    check_same(rounds.found, "cosine and stderr, prompt of each", SAME)
    return rounds, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bergson", help="the Python of an environment with Bergson in it")
    parser.add_argument("--problems", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--spread", type=float, default=0.5, help="standard deviation of the log of response lengths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of Bergson's batches; ours are problems")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    inner._due = lambda model, parameters: False
    model = make_model(given.width, given.layers, given.vocabulary)
    parameters, generator = parameters_of(model.model, "linear"), torch.Generator().manual_seed(1)
    direction = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    base = "Bergson" if given.bergson else "cosine and stderr, prompt of each"
    result: dict[str, Any] = {"settings": {**vars(given), "bergson": bool(given.bergson)}, "shares": {}}
    for share, (prompt, response) in SHARES.items():
        rounds, tokens = one_share(model, direction, given, prompt, response)
        apart = {
            way: rounds.over(f"{way}, prompt of each", way)
            for way in rounds.seconds
            if f"{way}, prompt of each" in rounds.seconds
        }
        result["shares"][share] = {
            "tokens": tokens,
            **rounds.record(base),
            "gain": {w: vars(r) for w, r in apart.items()},
        }
        rows = [
            (way, f"{rounds.median(way):.2f}", rounds.over(way, base), apart.get(way, "")) for way in rounds.seconds
        ]
        show(
            f"{given.problems} problems of {ROLLOUTS} rollouts, {share} of {tokens:,} tokens in the prompts",
            ("", "seconds", f"over {base}", "gain by sharing"),
            rows,
        )
    write("policy_over_bergson", result)


if __name__ == "__main__":
    sys.exit(main())
