"""The YAML at the top of README.md, as the Hub reads it (PyYAML comes with huggingface_hub)."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .answers import Reply, bad_request, json_reply
from .request import Request, route
from .store import Commit, Repo

_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def front_matter(readme: str) -> tuple[dict[str, Any], str]:
    """The mapping, and what is wrong with it ("" when nothing is)."""
    found = _FRONT.match(readme)
    if found is None:
        return {}, ""
    try:
        data = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-13-45
        return {}, str(error)
    if data is None:
        return {}, ""
    return (data, "") if isinstance(data, dict) else ({}, "The metadata is not a mapping")


def card_data(repo: Repo, commit: Commit) -> dict[str, Any]:
    entry = commit.tree.get("README.md")
    return front_matter(repo.read(entry.sha256).decode("utf-8", "replace"))[0] if entry else {}


def tags(card: dict[str, Any]) -> list[str]:
    """Tags as they stand in the card, and those that the Hub makes of some of its keys."""
    made: list[str] = []
    for key, prefix in (("tags", ""), ("language", "language:"), ("license", "license:"), ("datasets", "dataset:")):
        value = card.get(key) or []
        made += [prefix + str(item) for item in (value if isinstance(value, list) else [value])]
    return made


@route("POST", "/api/validate-yaml")
def validate_yaml(request: Request) -> Reply:
    content = str(request.json().get("content", ""))
    data, wrong = front_matter(content)
    if wrong:
        raise bad_request("Invalid metadata in README.md", errors=[{"message": wrong}], warnings=[])
    empty = "empty or missing yaml metadata in repo card"
    return json_reply({"errors": [], "warnings": [] if data else [{"message": empty}]})
