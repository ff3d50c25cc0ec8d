"""Text that the project did not write, such as names, reasons and messages of other code, made safe to show.

A control character can move the cursor, change the title of a terminal or hide what follows, and a bidirectional or
invisible character can make a name look like another one. Each is shown as its escape, such as `\\x1b` or `\\u202e`.
"""

from __future__ import annotations

import re

# Controls, line separators, surrogates, directions, and characters without a glyph.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|<(?=[\w/!?])|&(?=[\w#])|(?<!\w)_|_(?!\w)")
_LINE_START = re.compile(r"^(\s*\d{0,9})([#+=.)-]+(?=\s|$)|>)")  # what makes a heading, a list or a rule of a line
_BACKTICKS = re.compile("`+")


def _escape(found: re.Match[str]) -> str:
    character = found.group()
    code = ord(character)
    width, letter = (2, "x") if code < 0x100 else (4, "u") if code < 0x10000 else (8, "U")
    return _SHORT.get(character) or f"\\{letter}{code:0{width}x}"


def visible(text: object) -> str:
    """Return a text as one line in which every control, invisible or bidirectional character is its escape."""
    shown = str(text)
    return shown if shown.isascii() and shown.isprintable() else _HIDDEN.sub(_escape, shown)


def hidden_characters(text: str) -> list[str]:
    """Return the escape of each character of the text that `visible` replaces, once each."""
    return list(dict.fromkeys(map(_escape, _HIDDEN.finditer(text))))


def visible_lines(text: object) -> str:
    """Return a text of several lines in which every such character but the line breaks is its escape."""
    return "\n".join(map(visible, str(text).replace("\r\n", "\n").expandtabs(4).split("\n")))


def markdown(text: object) -> str:
    """Return a text as one line of Markdown that shows as the text itself: no links, HTML, cells or headings of it."""
    return _LINE_START.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\g<0>", visible(text)))


def code_span(text: object, in_table: bool = False) -> str:
    """Return a text as Markdown code, which may contain backticks; in a table, `|` is escaped too."""
    shown = visible(text)
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(shown)), default=0))
    padding = " " if "`" in shown or shown != shown.strip() or not shown else ""
    shown = f"{fence}{padding}{shown}{padding}{fence}"
    return shown.replace("|", "\\|") if in_table else shown
