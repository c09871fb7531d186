"""Card: what a reader of the Hub page learns about one curated config, computed from its manifest and nothing else.

A card is a tree of sections: select one (`card["Limits"]`), change its `body`, render again. The same manifest renders
to the same bytes. The wording lives in cards/*.j2. Templates are never built from data, every expression in them is
escaped for Markdown by default (`markdown.escape`), and a name that the manifest lacks is an error, not an empty cell.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from hf_curate.errors import CurateError, ManifestError
from hf_curate.hub import markdown
from hf_curate.hub.evidence import claims

PARTS: dict[str, tuple[str, dict[str, str]]] = {
    "What is in it": ("objects", {"Load": "load", "Columns": "columns"}),
    "What makes it useful": (
        "useful",
        {
            "Verification contract": "verification",
            "Scores": "scores",
            "Scores of steps": "steps",
            "Length": "length",
            "Pass rate": "pass_rate",
            "Confounds": "confounds",
            "Overlap with simpler choices": "overlap",
            "Audit against exact gradients": "audit",
        },
    ),
    "How it was constructed": (
        "chosen",
        {
            "Source and licence": "lineage",
            "Rows": "rows",
            "Settings": "settings",
            "Direction": "direction",
            "Reproduce": "reproduce",
            "Versions": "versions",
            "Digests": "digests",
        },
    ),
    "How it scales": ("scales", {"Training": "training"}),
    "Limits": ("limits", {}),
    "Citation": ("citation", {}),
}
"""Titles in their order, which is that of the four questions: what is in it, what makes it useful, how was it made,
how does it scale; the template of each body, and the sections below it. One of those whose body is empty is left
out."""

LABELS: dict[str, dict[str, str]] = {
    "confound_labels": {
        "steps": "number of steps",
        "tokens": "length in tokens",
        "loss": "mean loss",
        "overlap": "token overlap of steps and answer",
        "success_rate": "success rate",
        "learnability": "learnability p(1-p)",
        "length": "mean length of the responses",
    },
    "baseline_labels": {
        "random": "random",
        "longest": "longest",
        "most_steps": "most steps",
        "lowest_loss": "lowest loss",
        "highest_loss": "highest loss",
        "accuracy_greedy": "accuracy-greedy (success rate nearest 0.5)",
        "pass_rate_band": "pass-rate band (neither always right nor always wrong)",
    },
    "rollout_labels": {
        "rows": "all",
        "without_signal": "without signal",
        "always_right": "always right",
        "always_wrong": "always wrong",
    },
    "object_labels": {
        "problem": "problem",
        "behaviour": "behaviour: the traces or rollouts",
        "feedback": "feedback: rewards and scores",
        "attribution": "attribution: where the row was",
        "other": "other columns of the source",
    },
    "digest_labels": {"source_row": "the chosen row numbers", "rows": "the source columns of the kept rows"},
}

UNRANKED: dict[str, tuple[str, str]] = {
    "random": ("chosen at random", "rows were drawn at random (the seed is below)"),
    "longest": ("the longest", "the longest rows were kept"),
    "most_steps": ("those with the most steps", "the rows with the most steps were kept"),
    "lowest_loss": ("those with the lowest loss", "the rows with the lowest loss were kept"),
    "highest_loss": ("those with the highest loss", "the rows with the highest loss were kept"),
    "accuracy_greedy": (
        "those with a success rate nearest 0.5",
        "the rows with a success rate nearest 0.5 were kept",
    ),
    "pass_rate_band": (
        "the first that are neither always right nor always wrong",
        "rows that are neither always right nor always wrong were kept in their order",
    ),
}
"""Strategies that do not rank by the score, which then only says what may be kept: how the first line and
how a sentence say it."""
RATES = frozenset({"success_rate", "learnability"})
IS_PROPERTY: dict[str, frozenset[str]] = {
    **dict.fromkeys(("accuracy_greedy_score", "pass_rate_band_score", "learnability"), RATES),
    "longest_score": frozenset({"tokens", "length"}),
    "most_steps_score": frozenset({"steps"}),
    "lowest_loss_score": frozenset({"loss"}),
    "highest_loss_score": frozenset({"loss"}),
}
"""Columns that are a property of the row themselves, under these names among the confounds."""


@dataclass
class Section:
    """A title, a Markdown body, and the sections below it by title."""

    title: str
    body: str
    sections: dict[str, Section] = field(default_factory=dict)

    def __getitem__(self, title: str) -> Section:
        if title not in self.sections:
            raise KeyError(
                f"no section {title!r} below {self.title!r}; there are: {', '.join(self.sections) or 'none'}"
            )
        return self.sections[title]

    def render(self, level: int = 2) -> str:
        """This section and all below it as Markdown; `level` is the depth of its heading."""
        parts = [f"{'#' * level} {self.title}", self.body.strip()]
        parts += [section.render(level + 1).strip() for section in self.sections.values()]
        return "\n\n".join(part for part in parts if part) + "\n"


class Card(Section):
    """The card of one config and split.

    Args:
        manifest (`dict`): the manifest of the selection (schema hf_curate/manifest/2; what 1 lacks is "not measured").
        plots (`dict[str, str]`, *optional*): plot name -> path of its PNG relative to README.md; "scores", "steps",
            "length", "pass_rate" and "nested" are known.
        repo_id (`str`, *optional*): the repo or folder that the load snippet names.

    Raises:
        ManifestError: the manifest lacks something that the card has to say.

    Example:
        >>> card = Card(manifest, plots={"scores": "grace-20pct/train.scores.png"})    # doctest: +SKIP
        >>> card["How it was constructed"]["Settings"].body                            # doctest: +SKIP
    """

    def __init__(
        self, manifest: Mapping[str, Any], plots: Mapping[str, str] | None = None, *, repo_id: str | None = None
    ) -> None:
        try:
            context = {
                "m": manifest,
                "plots": plots or {},
                "repo": repo_id or markdown.Safe("<repo or folder>"),
                "source": source_name(manifest),
                "model": model_name(manifest),
                "budget": budget_words(manifest["budget"]["asked"]),
                "how": how(manifest),
                "unranked": UNRANKED.get(str(manifest["selector"]["strategy"])),
                "is_property": is_property(str(manifest["selector"]["column"])),
                "direction_model": model_of(manifest["selector"].get("direction")),
                "claims": _claims(manifest),
                "objects": objects(manifest),
                "policy": model_of({"model": _part(manifest, "verification").get("policy")}),
                "rerun": rerun(_part(_part(manifest, "verification"), "verifier")),
                **LABELS,
            }
            room = environment()

            def body(name: str) -> str:
                return room.get_template(f"{name}.md.j2").render(context).strip()

            title = f"{markdown.escape(manifest['config_name'])}, split {markdown.escape(manifest['split'])}"
            sections = {name: Section(name, body(part), _below(subs, body)) for name, (part, subs) in PARTS.items()}
            super().__init__(title, body("summary"), sections)
        except (jinja2.UndefinedError, KeyError) as error:
            raise ManifestError(f"The card cannot be written, the manifest lacks a part of it: {error}") from error


def _below(parts: Mapping[str, str], body: Callable[[str], str]) -> dict[str, Section]:
    bodies = {title: body(part) for title, part in parts.items()}
    return {title: Section(title, text) for title, text in bodies.items() if text}


def how(manifest: Mapping[str, Any]) -> str:
    """What stands before the selector's name: "chosen by", or "chosen at random among the rows scored by"."""
    words = UNRANKED.get(str(manifest["selector"].get("strategy")))
    return "chosen by" if words is None else f"{words[0]} among the rows scored by"


def is_property(column: str) -> frozenset[str]:
    """The confounds that a column is itself."""
    end = column.rpartition("_")[2]
    return IS_PROPERTY.get(column, frozenset({end} & {"tokens", "loss"}))


def model_of(record: Any) -> str | None:
    """The name of the model in a record that others may have written; None where there is none."""
    model = record.get("model") if isinstance(record, Mapping) else None
    if not isinstance(model, Mapping):
        return None
    return model_name({"model": {name: model.get(name) and str(model[name]) for name in ("id", "sha", "digest")}})


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}


def _claims(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evidence for each claim; of a manifest that was written before there was any, what its parts show."""
    return _part(manifest, "claims") or claims(manifest)


def objects(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a row holds: part -> columns, each once, in the order of the four parts of a reasoning sample."""
    found = {part: list(manifest["columns"][part]) for part in ("source", "scores", "added")}
    named = _part(_part(manifest["selector"], "settings"), "columns")
    said = {role: name for role, name in named.items() if isinstance(name, str)}
    roles = {
        "problem": ("prompt", "messages"),
        "behaviour": ("completion", "steps", "responses", "response_ids"),
        "feedback": ("rewards", "answer"),
    }
    parts = {part: [said[role] for role in own if role in said] for part, own in roles.items()}
    judged = _part(_part(manifest, "verification"), "verifier").get("columns")
    parts["feedback"] += [*(judged if isinstance(judged, list) else []), "rollouts_outcomes"]
    parts = {part: [name for name in names if name in found["source"]] for part, names in parts.items()}
    known = {name for names in parts.values() for name in names}
    parts["feedback"] += found["scores"]
    parts["attribution"] = found["added"]
    parts["other"] = [name for name in found["source"] if name not in known]
    return {part: list(dict.fromkeys(names)) for part, names in parts.items() if names}


def rerun(contract: Mapping[str, Any]) -> str | None:
    """The lines of Python that judge rollouts by a contract again; None for one that its name does not make."""
    name, options = contract.get("name"), contract.get("options")
    if contract.get("kind") != "deterministic checker" or not isinstance(name, str) or not isinstance(options, dict):
        return None
    given = "".join(f", {option}={value!r}" for option, value in options.items() if str(option).isidentifier())
    named = contract.get("columns")
    columns = [name for name in named if str(name).isidentifier()] if isinstance(named, list) else []
    return (
        "from hf_curate import verifier\n\n"
        f"judge = verifier({name!r}{given})\n"
        f"rewards = judge(completions=responses{''.join(f', {column}={column}' for column in columns)})"
        "    # lists with one entry for each rollout"
    )


def source_name(manifest: Mapping[str, Any]) -> str:
    """`openai/gsm8k@e53f048`, or words for what was not recorded."""
    source = manifest["source"]
    if source is None or source["id"] is None:
        return "a source that was not recorded"
    return f"{source['id']}@{source['sha'][:7]}" if source["sha"] else f"{source['id']} (commit not recorded)"


def model_name(manifest: Mapping[str, Any]) -> str | None:
    """`Qwen/Qwen3-0.6B@c1899de`; a local model by name and weights; None where no model was read."""
    model = manifest["model"]
    if model is None:
        return None
    name = model["id"] or "a local model"
    if model["sha"]:
        return f"{name}@{model['sha'][:7]}"
    if model["digest"]:
        return f"{name} (weights {model['digest'].removeprefix('sha256:')[:7]})"
    return f"{name} (commit not recorded)"


def budget_words(asked: str | int | None) -> str:
    """A budget as a reader writes it: "20%" as "20 %", 5000 as "5,000 rows", "2M tokens" as it is."""
    text = "none" if asked is None else str(asked).strip()
    if rows := re.fullmatch(r"(\d+)(?: rows)?", text, re.ASCII):
        return f"{int(rows[1]):,} rows"
    return re.sub(r"(?<=\d)%$", " %", text)


def templates() -> Path:
    """The folder of the card's templates: inside the installed package, or beside it in a checkout."""
    for folder in (Path(__file__).parents[1] / "_cards", Path(__file__).parents[2] / "cards"):
        if (folder / "summary.md.j2").is_file():
            return folder
    raise CurateError("The card templates are missing from this installation: pip install --force-reinstall hf_curate")


@functools.cache
def environment() -> jinja2.Environment:
    """What the templates are rendered in: strict, and every expression escaped for Markdown."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # HTML escaping would be the wrong one: `finalize` escapes for Markdown
        finalize=markdown.escape,
    )
    made.filters |= {
        "code": markdown.code,
        "fence": markdown.fence,
        "literal": markdown.literal,
        "number": markdown.number,
        "percent": markdown.percent,
        "label": lambda name, labels: markdown.Safe(labels[name]) if name in labels else markdown.code(name),
        "path": lambda path: markdown.Safe(quote(path, safe="/.-_~")),
        "flat": _flat,
        "budget": budget_words,
        "total": _total,
    }
    return made


def _total(values: Any) -> Any:
    """The sum of numbers; of anything else there is none."""
    numbers = list(values)
    return sum(numbers) if all(isinstance(value, Real) for value in numbers) else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names. What is not set is left out below the first level."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {k: v for k, v in _flat(value, f"{prefix}{name}.").items() if v is not None}
        else:
            flat[f"{prefix}{name}"] = value
    return flat
