"""`hf-curate score`: which scorers there are, which options each of them has, and how one is made of them."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_curate.errors import ColumnsError, CurateError, DirectionError, RowError
from hf_curate.inputs import Rows, check_rows, load_rows

if TYPE_CHECKING:
    from datasets import Dataset

SCORE_HELP = """\
Score every row of a dataset and keep the result in a folder.

  hf-curate score openai/gsm8k@main:main/train --model Qwen/Qwen3-0.6B --out runs/gsm8k
  hf-curate score traces.jsonl --model ./my-model --prompt question --completion solution \\
      --out runs/mine
  hf-curate score rollouts.jsonl --scorer gradalign --validation trusted.jsonl \\
      --model ./my-policy --out runs/gradalign
  hf-curate score runs/rolled --scorer learnalign --model ./my-policy --out runs/learnalign
  hf-curate score rollouts.jsonl --scorer accuracy-greedy --out runs/greedy
"""
SCORERS_HELP = """\
scorers of rows with a reasoning trace:
  grace            do the gradients of steps agree with those of the answer? (the default)
scorers of rows with rollouts (a prompt, responses, and a reward for each):
  learnalign       is the problem neither solved nor hopeless, and like the rest of the pool?
  gradalign        does its policy gradient point where a trusted validation set wants to go?
  align            does it point along the pool's mean gradient? (a baseline)
  accuracy-greedy  is the success rate near one half? (no model)
  pass-rate-band   is the success rate between --low and --high? (no model)
scorers of either, to compare with:
  random           chance, from --seed (no model)
  longest          most tokens (reads the tokenizer of --model)
  most-steps       most steps (reads the tokenizer of --model)
  lowest-loss, highest-loss
"""

TOKENIZER = ("model", "revision", "tokenizer", "max_length")
MODEL = (*TOKENIZER, "dtype", "device", "batch_tokens")
TRACE = ("prompt", "completion", "answer", "steps", "messages", "split_steps")
ROLLOUTS = ("prompt", "messages", "responses", "response_ids", "rewards")
EITHER = tuple(dict.fromkeys((*TRACE, *ROLLOUTS)))
DIRECTION = ("parameters", "direction", "save_direction")


@dataclass(frozen=True)
class Kind:
    """A scorer of the command line: its class by module and name, its options, and arguments that are settled."""

    module: str
    name: str
    options: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def make(self, arguments: Mapping[str, Any]) -> Any:
        return getattr(import_module(f"hf_curate.scorers.{self.module}"), self.name)(**arguments, **self.fixed)


KINDS = {
    "grace": Kind("grace", "GraceScorer", (*MODEL, *TRACE, "alpha", "history", "target", "proxy", "keep_gram")),
    "learnalign": Kind(
        "learnalign",
        "LearnAlignScorer",
        (*MODEL, *ROLLOUTS, *DIRECTION, "projection_dim", "correct_above", "seed"),
    ),
    "gradalign": Kind("gradalign", "GradAlignScorer", (*MODEL, *ROLLOUTS, *DIRECTION, "validation", "statistic")),
    "align": Kind("align", "AlignScorer", (*MODEL, *ROLLOUTS, *DIRECTION)),
    "accuracy-greedy": Kind("baselines", "AccuracyGreedyScorer", ("rewards", "correct_above")),
    "pass-rate-band": Kind("baselines", "PassRateBandScorer", ("rewards", "correct_above", "low", "high")),
    "random": Kind("baselines", "RandomScorer", ("seed",)),
    "longest": Kind("baselines", "LongestScorer", (*TOKENIZER, *EITHER)),
    "most-steps": Kind("baselines", "MostStepsScorer", (*TOKENIZER, *EITHER)),
    "lowest-loss": Kind("baselines", "LossScorer", (*MODEL, *EITHER), {"prefer": "lowest"}),
    "highest-loss": Kind("baselines", "LossScorer", (*MODEL, *EITHER), {"prefer": "highest"}),
}
DEFAULT = "grace"
FIRST_ROWS = 8
"""Rows that are looked at for a trace, where the columns could hold one."""
OPTIONS = tuple(dict.fromkeys(option for kind in KINDS.values() for option in kind.options))


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given. CurateError: one is of other scorers, or one that this scorer needs was not."""
    name = arguments.scorer or DEFAULT
    given = {option: getattr(arguments, option) for option in OPTIONS if getattr(arguments, option) is not None}
    foreign = [option for option in given if option not in KINDS[name].options]
    if foreign:
        raise CurateError(f"--scorer is {name}. {' '.join(_belongs(option) for option in foreign)}")
    _check_needs(name, given)
    return given


def scorer_of(arguments: argparse.Namespace) -> tuple[Any, Rows | None]:
    """The scorer that the options describe, and the rows of its validation set, if it has one.

    Options that were not given are left to the scorer's own defaults. CurateError: an option of other scorers was
    given, one that this scorer needs was not, or the validation set cannot be read.
    """
    given = options_of(arguments)
    given.pop("save_direction", None)
    trusted = None
    if "validation" in given:
        try:
            check_rows(given["validation"])
            trusted = load_rows(given["validation"])
        except CurateError as error:
            raise CurateError(f"--validation: {error}") from error
        given["validation"] = trusted.dataset
    return KINDS[arguments.scorer or DEFAULT].make(given), trusted


def check_traces(dataset: Dataset, source: str, arguments: argparse.Namespace) -> None:
    """Raises ColumnsError for rows that hold rollouts and no trace, where no --scorer says how to read them."""
    from hf_curate.rows import detect_columns
    from hf_curate.scorers.either import OF_ROLLOUTS, OF_TRACES, SHARED, holds_rollouts

    names = dataset.column_names
    asked = {role: getattr(arguments, role) for role in (*SHARED, *OF_TRACES, *OF_ROLLOUTS)}
    if not holds_rollouts(names, asked):
        return
    try:
        columns = detect_columns(names, dataset[0], **{role: asked[role] for role in (*SHARED, *OF_TRACES)})
        if any(_is_trace(row, columns) for row in dataset.select(range(min(len(dataset), FIRST_ROWS)))):
            return
    except ColumnsError:
        pass
    raise ColumnsError(
        f"the rows of {source} hold rollouts and no trace, and without --scorer they would be read as traces: "
        "--scorer gradalign (with --validation SOURCE) or --scorer learnalign, or a baseline (hf-curate score --help)."
    )


def check_policy(scorer: Any, rows: Rows, arguments: argparse.Namespace) -> None:
    """Whether the rollouts of an earlier run are of the scorer's policy, where both are known.

    CurateError: their token ids are another tokenizer's. Warns where policy gradients would be taken of another model
    than the one that sampled.
    """
    made = rows.rolled_by(vars(arguments))
    if made is None:
        return
    told, own = made.get("settings") or {}, scorer.settings()
    theirs, ours = told.get("tokenizer_sha256"), own.get("tokenizer_sha256")
    if theirs and ours and theirs != ours and "response_ids" in scorer.reads(rows.dataset.column_names):
        raise CurateError(
            f"the token ids of {rows.source} were sampled with another tokenizer (sha256 {theirs[:12]}, that of "
            f"--model {ours[:12]}), and would be read as other text: give the --model that sampled them, or "
            "--responses responses, whose texts are tokenised again."
        )
    models = [record or {} for record in (made.get("model"), scorer.model_record())]
    known = [name for name in ("digest", "sha") if all(record.get(name) for record in models)]
    if "parameters" in own and any(models[0][name] != models[1][name] for name in known):
        was, now = (f"{record['id']} ({(record.get('sha') or record['digest'])[:12]})" for record in models)
        warnings.warn(
            f"the rollouts of {rows.source} were sampled by {was}, and gradients are taken of {now}: policy gradients "
            "are those of the policy that sampled.",
            UserWarning,
            stacklevel=2,
        )


def _is_trace(row: Any, columns: Any) -> bool:
    from hf_curate.rows import read_trace

    try:
        read_trace(row, columns)
    except RowError:
        return False
    return True


def fit_first(scorer: Any, pool: Rows, trusted: Rows | None, arguments: argparse.Namespace) -> None:
    """Fits the scorer before it scores, on its validation set or else on the pool.

    The direction is kept at --save-direction (else in the cache), with the name of the source that it was fitted on
    and with the verifier of its rollouts where that is known. Warns if both sets hold the same rows.
    ColumnsError, DirectionError: say so where they are of the validation set.
    """
    fitted_on = trusted or pool
    made = fitted_on.rolled_by(vars(arguments)) or {}
    said = {"out": arguments.save_direction, "source": fitted_on.source, "verifier": made.get("verifier")}
    if trusted is None:
        scorer.fit(pool.dataset, **said)
        return
    if _same_rows(scorer, pool.dataset, trusted.dataset):
        warnings.warn(
            f"--validation ({trusted.source}) holds the same rows as the pool ({pool.source}), so each problem is "
            "compared with a mean that it is part of: give trusted problems of their own.",
            UserWarning,
            stacklevel=2,
        )
    try:
        scorer.fit(trusted.dataset, **said)
    except DirectionError as error:  # a ColumnsError says so itself
        raise DirectionError(f"of the validation set: {error}") from error


def _same_rows(scorer: Any, pool: Dataset, other: Dataset) -> bool:
    """Whether two datasets hold the same values in the columns that the scorer reads."""
    from hf_curate.scorers.fitting import rows_digest

    if len(pool) != len(other):
        return False
    read = [scorer.reads(rows.column_names) for rows in (pool, other)]
    return read[0] == read[1] and rows_digest(pool, read[0]) == rows_digest(other, read[1])


def add_columns(parser: argparse.ArgumentParser) -> None:
    """The options that name columns, shared by score and inspect."""
    group = parser.add_argument_group(
        "columns", "found by their usual names (prompt, question, solution, messages, rewards, ...) if left out"
    )
    for role, what in {
        "prompt": "the problem",
        "messages": "a chat, whose last assistant message is the trace; of rows with rollouts the prompt",
        "completion": "the reasoning trace with its answer",
        "answer": "the final answer's text, to be found in the trace",
        "steps": "a list of ready steps",
        "responses": "a list of sampled responses, as text",
        "response_ids": "a list of sampled responses, as token ids",
        "rewards": "a list of numbers, one for each response",
    }.items():
        group.add_argument(_flag(role), metavar="COLUMN", help=what)
    group.add_argument(
        "--split-steps",
        metavar="HOW",
        help="auto, numbered, gsm8k, think, blank_lines, lines, sentences, or a regex of separators (default: auto)",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """All options that say how to score. None of them has a default here: what was not given is not passed on."""
    parser.add_argument(
        "--scorer", type=_scorer_name, metavar="NAME", help=f"how to score, see below (default: {DEFAULT})"
    )
    add_columns(parser)
    _add_grace(parser.add_argument_group("GRACE"))
    _add_gradients(parser.add_argument_group("policy gradients (learnalign, gradalign, align)"))
    _add_baselines(parser.add_argument_group("baselines and learnability"))
    model = parser.add_argument_group("model")
    add_model(model)
    model.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="longer rows get no score (default: the model's context)"
    )


def _add_grace(group: Any) -> None:
    group.add_argument("--alpha", type=float, help="weight of the answer's alignment (default: 0.7)")
    group.add_argument("--history", type=_history, help="uniform, window:W or ema:BETA (default: uniform)")
    group.add_argument("--target", help="answer, steps+answer or suffix (default: answer)")
    group.add_argument("--proxy", help="representation, outer, last or exact (default: representation)")
    group.add_argument(
        "--keep-gram",
        action="store_true",
        default=None,
        help="store inner products, to change alpha and history later",
    )


def _add_gradients(group: Any) -> None:
    group.add_argument(
        "--validation", metavar="SOURCE", help="gradalign: trusted problems with rollouts, as SOURCE; or --direction"
    )
    group.add_argument("--direction", metavar="FILE", help="what --save-direction wrote, instead of fitting again")
    group.add_argument(
        "--save-direction", metavar="FILE", help="keep here what is fitted (with --projection-dim a folder)"
    )
    group.add_argument(
        "--parameters",
        metavar="SET",
        help="all, linear, adapters, or a regex of names (default: linear for learnalign, else all)",
    )
    group.add_argument("--statistic", help="gradalign: cosine, dot, t or corr (default: cosine)")
    group.add_argument(
        "--projection-dim",
        type=int,
        metavar="N",
        help="learnalign: random features for each weight matrix (default: exact, two passes)",
    )


def _add_baselines(group: Any) -> None:
    group.add_argument(
        "--correct-above",
        type=float,
        metavar="REWARD",
        help="learnalign, accuracy-greedy, pass-rate-band: a rollout with more is correct (default: 0.5)",
    )
    group.add_argument("--low", type=float, metavar="RATE", help="pass-rate-band: above this rate (default: 0)")
    group.add_argument("--high", type=float, metavar="RATE", help="pass-rate-band: below this rate (default: 1)")
    group.add_argument("--seed", type=int, help="random; learnalign with --projection-dim (default: 0)")


def add_model(group: Any) -> None:
    """The options that say which model reads (or samples) the rows, shared by score and rollouts."""
    group.add_argument("--model", help="org/name, org/name@revision, or a folder with safetensors")
    group.add_argument("--revision", help="branch, tag or commit of a Hub model")
    group.add_argument("--tokenizer", help="id or folder, if not the model's own")
    group.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the checkpoint's own)")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the best there is)")
    group.add_argument("--batch-tokens", type=int, metavar="TOKENS", help="padded tokens at a time; changes no result")


def _scorer_name(text: str) -> str:
    if text in KINDS:
        return text
    near = get_close_matches(text.lower().replace("_", "-").replace(" ", "-"), KINDS, n=1)
    fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(KINDS)}"
    raise argparse.ArgumentTypeError(f"there is no scorer {text!r}: {fix}")


def _history(text: str) -> str | tuple[str, float]:
    kind, colon, value = text.partition(":")
    if not colon:
        return text
    try:
        return (kind, int(value) if kind == "window" else float(value))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not uniform, window:W or ema:BETA") from None


def _check_needs(name: str, given: Mapping[str, Any]) -> None:
    if "model" in KINDS[name].options and "model" not in given:
        raise CurateError(f"--scorer {name} reads rows with a model: --model org/name, or a folder with safetensors.")
    if name == "gradalign" and ("validation" in given) == ("direction" in given):
        both = "both were" if "validation" in given else "neither was"
        raise CurateError(f"--scorer gradalign needs --validation SOURCE or --direction FILE, and {both} given.")
    if "direction" in given and "save_direction" in given:
        raise CurateError("--direction is fitted already, so there is nothing for --save-direction: drop one of them.")
    if name == "learnalign" and "seed" in given and "projection_dim" not in given:
        raise CurateError("--seed is that of the projection: give --projection-dim with it, or drop it.")


def _belongs(option: str) -> str:
    owners = [name for name, kind in KINDS.items() if option in kind.options]
    other = f", or choose --scorer {owners[0]}" if len(owners) == 1 else ""
    return f"{_flag(option)} belongs to {', '.join(owners)}: drop it{other}."


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
