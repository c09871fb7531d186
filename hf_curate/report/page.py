"""The page: one self-contained HTML file without scripts, that loads nothing and that its own policy keeps from it.

All text goes through Jinja's HTML escaping, and what cannot be seen is written as an escape first. Colours follow the
reader's light or dark setting; the plots stay on their light panels.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hf_curate.errors import CurateError, MissingPackageError
from hf_curate.hub.card import Card, source_name
from hf_curate.hub.files import CARD_ERRORS, first
from hf_curate.hub.markdown import number, percent, visible
from hf_curate.plots import draw
from hf_curate.report.explorer import Pool, Tab, tabs

logger = logging.getLogger("hf_curate")

IMAGE = re.compile(r"!\[(.*?)\]\((.*?)\)", re.DOTALL)
TITLES = {
    "scores": "Scores",
    "steps": "Scores of steps",
    "length": "Length",
    "pass_rate": "Pass rate",
    "nested": "Nested budgets",
}


def page(pool: Pool, title: str, rows: int = 12, seed: int = 0) -> str:
    """The report as HTML.

    Args:
        pool: the rows it may show, with the manifest of the selection.
        title: its heading.
        rows: rows under each heading of the explorer.
        seed: of the random ones.
    """
    card = _card(pool.manifest)
    context = {
        "title": title,
        "summary": _plain(card.body) if card is not None else "",
        "facts": _facts(pool.manifest),
        "claims": _claims(card) if card is not None else [],
        "nested": (pool.manifest.get("nested") or {}).get("budgets") or [],
        "plots": _plots(pool.manifest, card),
        "tabs": _checked(tabs(pool, rows, seed)),
        "column": pool.manifest["selector"]["column"],
        "manifest": json.dumps(pool.manifest, indent=2, ensure_ascii=False, default=str),
    }
    return _environment().get_template("page.html.j2").render(context)


def _checked(found: Sequence[Tab]) -> list[Tab]:
    return [tab for tab in found if tab.rows]


def _card(manifest: Mapping[str, Any]) -> Card | None:
    named = {"config_name": "config", "split": "train"}
    plots = {name: name for name in draw.PLOTS}
    try:
        return Card({**manifest, **{k: v for k, v in named.items() if not manifest.get(k)}}, plots)
    except CARD_ERRORS as error:
        logger.warning("The report has no summary, the manifest lacks a part of the card: %s", first(error))
        return None


def _plots(manifest: Mapping[str, Any], card: Card | None) -> list[dict[str, str]]:
    """The plots as data addresses, with the card's words for those who cannot see them."""
    words = {path: _plain(alt) for alt, path in IMAGE.findall(card.render())} if card is not None else {}
    found = []
    for name in draw.PLOTS:
        try:
            if not draw.has(name, manifest):
                continue
            image = base64.b64encode(draw.plot(name, manifest)).decode()
        except MissingPackageError as error:
            logger.warning("%s; the report is written without plots.", error)
            return []
        except Exception as error:  # noqa: BLE001 - whatever a drawing library raises: the rows are worth more
            logger.warning("The plot %r could not be drawn (%s).", name, first(error))
            continue
        found.append({"title": TITLES[name], "alt": words.get(name, TITLES[name]), "image": image})
    return found


def _plain(markdown: str) -> str:
    """The text of a line of the card: entities decoded, code marks dropped."""
    return html.unescape(re.sub(r"</?code>|`", "", markdown))


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    rows, budget, selector = manifest["rows"], manifest["budget"], manifest["selector"]
    failed = ", ".join(f"{reason} {count:,}" for reason, count in rows["failed"].items())
    model = manifest["model"] or {}
    return {
        "source": source_name(manifest),
        "selector": f"{selector['name']}, strategy {selector['strategy']}, column {selector['column']}",
        "model": f"{model.get('id')} ({model.get('sha') or model.get('digest') or 'commit not recorded'})"
        if model
        else "none",
        "rows": f"{rows['in']:,} in, {rows['scored']:,} scored, {rows['kept']:,} kept",
        "not scored": failed or "none",
        "budget": f"{budget['asked']}, seed {budget['seed']}",
        "threshold": "none" if budget["threshold"] is None else f"{budget['threshold']:.4g}",
    }


def _claims(card: Card) -> list[tuple[str, str]]:
    """Claim and evidence, out of the card's table of them."""
    rows = [line.strip("| ").split(" | ") for line in card["What makes it useful"].body.splitlines() if "|" in line]
    return [(_plain(cells[0]).partition(":")[0], _plain(cells[1])) for cells in rows[2:] if len(cells) == 2]


@functools.cache
def _environment() -> jinja2.Environment:
    folder = Path(__file__).parent
    if not (folder / "page.html.j2").is_file():
        raise CurateError(
            "The page of reports is missing from this installation: pip install --force-reinstall hf_curate"
        )
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters |= {
        "number": lambda value: html.unescape(number(value)),
        "percent": lambda part, whole: html.unescape(percent(part, whole)),
        "tone": _tone,
    }
    return made


def _shown(value: Any) -> Any:
    """Text without what cannot be seen; markup of ours and numbers as they are."""
    return visible(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def _tone(tone: float | None) -> Markup:
    """The background of a step: blue for high and orange for low scores, clear in the middle; on light and dark."""
    if tone is None:
        return Markup("")
    colour = "11, 97, 164" if tone > 0 else "200, 96, 0"
    return Markup(f"background: rgba({colour}, {0.42 * abs(tone):.2f})")
