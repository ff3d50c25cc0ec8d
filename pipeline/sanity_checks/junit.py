"""JUnit's XML of judged items: a test case each, as continuous integration reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as Xml

from pipeline.run_store.gate import Item

_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold
_SKIPPED, _ERROR = ("not_applicable", "pending"), ("errored",)


def junit(name: str, items: Mapping[str, Sequence[Item]], seconds: float) -> str:
    """A suite per phase and a case per item: `failure` with its reason, `error` for a check that gave no answer,
    `skipped` for what does not apply. Times of single cases are not known and say 0; the whole took `seconds`.
    """
    root = Xml.Element("testsuites", {"name": name, **_counts([i for some in items.values() for i in some], seconds)})
    for number, (phase, some) in enumerate(items.items()):
        counts = _counts(some, seconds if number == 0 else 0.0)
        suite = Xml.SubElement(root, "testsuite", {"name": f"{name}.{phase}", **counts})
        for item in some:
            _case(suite, f"{name}.{phase}", item)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _counts(items: Sequence[Item], seconds: float) -> dict[str, str]:
    skipped = sum(i.outcome in _SKIPPED for i in items)
    errors = sum(i.outcome in _ERROR for i in items)
    good = sum(i.outcome == "passed" for i in items)
    counts = {"tests": len(items), "failures": len(items) - skipped - errors - good, "errors": errors}
    return {**{name: str(n) for name, n in counts.items()}, "skipped": str(skipped), "time": f"{seconds:.3f}"}


def _case(suite: Xml.Element, classname: str, item: Item) -> None:
    case = Xml.SubElement(suite, "testcase", {"classname": classname, "name": item.id, "time": "0.000"})
    if item.outcome == "passed":
        if item.why:
            Xml.SubElement(case, "system-out").text = _plain(item.why)
        return
    kind = "skipped" if item.outcome in _SKIPPED else "error" if item.outcome in _ERROR else "failure"
    said = Xml.SubElement(case, kind, {"message": _plain(item.why or item.outcome)})
    if kind != "skipped":
        said.set("type", item.cause or item.outcome)
        said.text = _plain(f"{item.ask}\nfound {item.value} {item.unit}, bound {item.bound}\n{item.why}")


def _plain(text: str) -> str:
    return _UNWRITABLE.sub("?", text)
