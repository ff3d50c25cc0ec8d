"""The page in headless Chromium: no console message, every section, and nothing wider than the window.

`make test-page` installs playwright and runs these. With FIVEGATE_SHOW=RUN:... the pages of these runs are tried too,
and FIVEGATE_SCREENSHOTS=DIR keeps a picture of each.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.reporting.page import write_report, write_table
from pipeline.run_store.run import opened
from tests.integrations import FOLDER
from tests.ledger_fixtures import LATER, baseline_done
from tests.shown_runs import complete

pytestmark = pytest.mark.integration
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOWS = [(1440, "light"), (1440, "dark"), (360, "light"), (360, "dark")]
SECTIONS = (
    "status", "open", "waivers", "scores", "curves", "modules", "diagnosis", "experiments", "trials", "quality",
    "confusion", "slices", "calibration", "robustness", "adversarial", "latency", "gates", "planning", "baseline",
    "diagnostics", "optimization", "finalization", "not-checked", "people", "timeline", "revisions", "reproduce",
)  # fmt: skip
TOO_WIDE = """() => [...document.querySelectorAll('main, main *')]
  .filter(e => !e.closest('svg') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
    && e.getBoundingClientRect().width > 0)
  .map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.trim().slice(0, 60))"""
SHOWN_HEIGHT, COLOURS = 1500, 200  # of a screenshot that is kept


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of this machine, else the one that playwright installed."""
    folder = FOLDER / "page"
    sys.path.append(str(folder))
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-page installs playwright")
    installed = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser starts: {str(error).splitlines()[0]}")
        yield started
        started.close()
    sys.path.remove(str(folder))


def faults(
    browser: Any, page: Path, width: int, scheme: str, picture: Path | None = None
) -> tuple[list[str], list[str]]:
    """What the console says and what is wider than the window, with every `<details>` open; and the ids of the page."""
    window = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    window.on("console", lambda message: said.append(f"console: {message.text}"))
    window.on("pageerror", lambda error: said.append(f"error: {error}"))
    window.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    window.goto(page.as_uri())
    if picture is not None:
        _keep(window.screenshot(full_page=True), picture)
    window.add_style_tag(content="details::details-content { display: block; content-visibility: visible; }")
    window.evaluate("() => document.querySelectorAll('details').forEach(e => e.open = true)")
    said += window.evaluate(TOO_WIDE)
    ids = window.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    window.close()
    return said, ids


def _keep(shot: bytes, picture: Path) -> None:
    """Keep the top of a screenshot as a small PNG."""
    from PIL import Image

    image = Image.open(io.BytesIO(shot)).convert("RGB")
    image.crop((0, 0, image.width, min(image.height, SHOWN_HEIGHT))).quantize(
        COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(picture, optimize=True)


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_page_of_a_complete_run(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    """Every section is there, nothing overflows with all questions unfolded, and the console stays empty."""
    said, ids = faults(browser, write_report(complete(tmp_path).path), width, scheme)
    assert said == []
    assert [section for section in SECTIONS if section not in ids] == []


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_page_with_long_names(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    """Names without a place to break do not widen the page."""
    run = baseline_done(tmp_path, "x" * 63)
    with opened(run) as ledger:
        waiver = {"who": "A" * 80, "why": "w" * 300, "expires": LATER}
        ledger.append("waiver", {"phase": "baseline", "item": "i" * 90, **waiver})
        ledger.append("phase.failed", {"phase": "finalization", "round": 1, "why": "f" * 300})
    assert faults(browser, write_report(run.path), width, scheme)[0] == []


@pytest.mark.parametrize("width", [1440, 360])
def test_table_of_runs(browser: Any, tmp_path: Path, width: int) -> None:
    """The table of all runs fits as well."""
    complete(tmp_path, "first")
    baseline_done(tmp_path, "second")
    table, damaged = write_table(tmp_path)
    assert damaged == [] and faults(browser, table, width, "light")[0] == []


SHOWN = [Path(path).resolve() for path in os.environ.get("FIVEGATE_SHOW", "").split(":") if path]


@pytest.mark.parametrize("run", SHOWN, ids=lambda run: run.name)
def test_pages_of_real_runs(browser: Any, run: Path) -> None:
    """The pages of the runs that FIVEGATE_SHOW names are as clean; their pictures are kept on request."""
    page = run if run.suffix == ".html" else write_report(run)
    folder = os.environ.get("FIVEGATE_SCREENSHOTS", "")
    for width, scheme in WINDOWS:
        name = f"{run.parent.name if run.suffix else run.name}_{width}_{scheme}.png"
        assert faults(browser, page, width, scheme, Path(folder) / name if folder else None)[0] == []
