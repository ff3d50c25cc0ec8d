"""Checklist items as JUnit XML, one test case per item, for continuous integration."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.escaping import visible_lines
from pipeline.run_store.gate import Item

if TYPE_CHECKING:
    from junitparser import TestCase

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML 1.0 forbids
_SKIPPED = ("not_applicable", "pending")


def junit(name: str, items: Mapping[str, Sequence[Item]], seconds: float) -> str:
    """Return a report with one suite per phase and one case per item.

    A failed item is a `failure`, a check that raised an `error`, and an item that does not apply is `skipped`. Items
    are not timed one by one: their times are 0, and the first suite has the whole time `seconds`.
    """
    from junitparser import JUnitXml, TestSuite

    report = JUnitXml(name)
    for phase, phase_items in items.items():
        suite = TestSuite(f"{name}.{phase}")
        suite.add_testcases([_case(f"{name}.{phase}", item) for item in phase_items])
        report.add_testsuite(suite)
    report.update_statistics()  # counts; the times that it adds up are 0
    report.time = seconds
    for suite in list(report)[:1]:
        suite.time = seconds
    text = io.BytesIO()
    report.write(text, pretty=True)
    return text.getvalue().decode()


def _case(classname: str, item: Item) -> TestCase:
    from junitparser import Error, Failure, Skipped, TestCase

    case = TestCase(item.id, classname, 0.0)
    message = _clean(item.why or item.outcome)
    if item.outcome == "passed":
        if item.why:
            case.system_out = message
    elif item.outcome in _SKIPPED:
        case.result = Skipped(message)
    else:
        result = (Error if item.outcome == "errored" else Failure)(message, item.cause or item.outcome)
        required = "" if item.bound is None else f", required {item.relation} {item.bound}"
        result.text = _clean(f"{item.ask}\nvalue {item.value} {item.unit}{required}\n{item.why}")
        case.result = result
    return case


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("?", visible_lines(text))
