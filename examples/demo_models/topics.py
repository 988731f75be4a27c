"""The topics of docstrings, by where a docstring came from. They label training, figures and the demo."""

import re
from pathlib import Path

import yaml

MODULES: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "topics.yaml").read_text())
TOPICS = tuple(MODULES)[:16]
"""Those that held-out packages have."""
UNSEEN = ("dates", "databases", "statistics", "graphs")
"""Never said in training, nor any word that begins like them."""
UNSEEN_WORDS = re.compile(r"\b(date|databas|db|sql|stat|graph)", re.IGNORECASE)
TEMPLATE = "This text is about {}."

_TOPIC_OF = [(f"{module}.", topic) for topic, modules in MODULES.items() for module in modules]


def topic_of(module: str) -> str | None:
    return next((topic for start, topic in _TOPIC_OF if f"{module}.".startswith(start)), None)
