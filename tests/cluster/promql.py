"""What the queries of a Grafana dashboard ask for."""

import re
from typing import Any

KEYWORDS = {"and", "or", "unless", "offset", "bool", "group_left", "group_right", "inf", "nan", "e"}
CLAUSE = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
MATCHERS = re.compile(r"\{([^}]*)\}")


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """Return the queries of all panels, and those that fill variables."""
    panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", []))]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    filled = [one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    texts = [query["query"] if isinstance(query, dict) else query for query in filled]
    return [*queries, *(re.fullmatch(r"label_values\((.+),\s*\w+\)", text)[1] for text in texts)]


def names_in(expression: str) -> set[str]:
    """Return the names of metrics: identifiers that are no function, keyword, label or duration."""
    bare = re.sub(r"\[[^\]]*\]", "", MATCHERS.sub("", CLAUSE.sub("", expression)))
    words = re.findall(r"(?<![\w.])([A-Za-z_:][\w:]*)\b(?!\s*\()", bare)
    return set(words) - KEYWORDS


def labels_in(expression: str) -> set[str]:
    """Return the labels that matchers and clauses name."""
    matched = [name for inner in MATCHERS.findall(expression) for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inner)]
    listed = [name.strip() for inner in CLAUSE.findall(expression) for name in inner.split(",") if name.strip()]
    return {*matched, *listed}
