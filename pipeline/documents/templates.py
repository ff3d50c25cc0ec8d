"""Rendering of the Markdown documents: every value is escaped, and numbers are written in one way."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipeline.documents.figures import shown
from pipeline.documents.measurement_tables import words
from pipeline.escaping import visible

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent


def render(name: str, values: Mapping[str, object]) -> str:
    """Return a document from the template `<name>.j2`. Only `Markup` is taken as Markdown; other text is escaped.

    Raises ValueError where a value is missing, as in records that another version wrote.
    """
    from jinja2 import TemplateError

    try:
        text = _environment().get_template(f"{name}.j2").render(values)
    except TemplateError as error:
        raise ValueError(f"{name}: {error}") from error
    lines = [line.rstrip() for line in text.splitlines()]
    single_spaced = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(single_spaced).rstrip("\n") + "\n"


def words_of(name: str) -> str:
    """Return the text of a template: the words, and the numbers among them, that a document has from nowhere else."""
    return (FOLDER / f"{name}.j2").read_text(encoding="utf-8")


def renderer_digest() -> str:
    """Return one SHA-256 of the templates and the code that fills them: with another, documents may read otherwise."""
    hashed = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.j2"), *FOLDER.glob("*.py")]):
        hashed.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # `shown` escapes for Markdown
        finalize=shown,
    )
    environment.filters.update(words=lambda name: Markup(words(name)), quoted=_quoted)
    return environment


def _quoted(text: str) -> Markup:
    """A text as one word of a shell command in a code block."""
    return Markup(shlex.quote(visible(text)))
