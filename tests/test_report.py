from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import Refused
from pipeline.history import History
from pipeline.reporting import plots
from pipeline.reporting.page import collect, write_report, write_table
from pipeline.reporting.panels import panels
from pipeline.reporting.plots import inline_svg
from pipeline.reporting.sections.heat_maps import heat_maps
from pipeline.reporting.sections.timeline import timeline
from pipeline.reporting.tables import TEST_ITEM, compare_test_with_target, score_lines
from pipeline.run_store import files
from pipeline.run_store.gate import Item
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run, opened
from tests.conftest import Cli
from tests.ledger_fixtures import (
    CONFIG,
    DIAGNOSIS,
    LATER,
    MEASURES,
    baseline_done,
    freeze,
    history,
    mended,
    passed,
    with_measures,
)
from tests.ledger_fixtures import gate as judge
from tests.shown_runs import QUALITY, complete, with_modules


class Page(HTMLParser):
    """Collects what a page would load, and checks that every element is closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attributes if name == "id" and value]
        self.loads += ["script"] if tag == "script" or any(name.startswith("on") for name, _ in attributes) else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(path: Path) -> str:
    """The page's words without its markup."""
    text = re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<style>.*?</style>", "", path.read_text()))
    return re.sub(r"\s+", " ", html.unescape(text))


def test_report_shows_the_whole_run(tmp_path: Path) -> None:
    """Branch, gates, items, diagnosis, fixes, trials, people, revisions and what was not checked are all there."""
    arguments = text_of(write_report(mended(tmp_path / "runs").path))
    for expected in (
        "digits-hot", "sufficient", "experiment digits", "seed 7", "target reached (accuracy 0.972 >= 0.95)",
        "n = 360", "target missed (accuracy 0.944 < 0.95)", "release blocked", ">= 0.95",
        "python -m pipeline explain digits-hot --gate finalization", "not finite from epoch 0.7",
        "after the fix, round 1",
        "learning_rate_too_high", "0.93", "optimizer.lr=0.003", "clip_grad_norm_", "c1 adopted", "+0.87", "0.031",
        "Is onnx parity done?", "1.2e-06", "waived", "( failed )", "Ada", "shadow deployment only",
        "not built: latency of the exported form", "activations – the monitor was off", "first plan", "study.decided",
    ):  # fmt: skip
        assert expected in arguments or expected.replace("( failed )", "(failed)") in arguments, expected


def test_report_headline_follows_the_last_gate(tmp_path: Path) -> None:
    """A model that is good enough on validation is not shown as such once its release is refused."""
    good = baseline_done(tmp_path, "good")
    headline = r'<span class="tag (\w+)">([^<]+)</span>\s*</header>'
    assert re.findall(headline, write_report(good.path).read_text()) == [("good", "sufficient on validation")]
    with opened(good) as ledger:
        judge(ledger, "finalization", passed("target_on_test", outcome="failed", value=0.9, bound=0.95, relation=">="))

    assert re.findall(headline, write_report(good.path).read_text()) == [("bad", "release blocked")]


def test_report_loads_nothing(tmp_path: Path) -> None:
    """The page is well-formed, has no script, embeds its images, and its content policy forbids everything else."""
    run = mended(tmp_path)
    picture = plots.confusion_matrix(np.eye(2, dtype=int), ["a", "b"])
    files.write_bytes(run.inside("baseline", "confusion_matrix.png"), picture["png"])
    page = Page(write_report(run.path).read_text())
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert {load[:15] for load in page.loads if not load.startswith("#")} == {"data:image/png;"}
    assert "default-src 'none'" in run.inside("report.html").read_text()


def test_report_escapes_text_of_the_run(tmp_path: Path) -> None:
    """Tags in names, reasons, diagnoses and metric names are shown as text."""
    run = baseline_done(tmp_path, branch="insufficient")
    evil = "<script>alert(1)</script>"
    cause = {**DIAGNOSIS["root_causes"][0], "evidence": [evil]}
    files.write_json(run.inside("diagnostics", 1, "diagnosis.json"), {**DIAGNOSIS, "root_causes": [cause]})
    made = History()
    made.log_epoch(1, {f"val/{evil}": 0.5})
    files.write_bytes(run.inside("baseline", "history.npz"), made.to_bytes())
    with opened(run) as ledger:
        judge(ledger, "diagnostics", passed("x", why=evil))
        ledger.append("waiver", {"phase": "x", "item": "y", "who": evil, "why": evil, "expires": "2999-01-01"})
    page = write_report(run.path).read_text()
    assert evil not in page
    assert "script" not in Page(page).loads
    assert page.count("&lt;script&gt;") >= 5


def test_report_shows_the_curves_of_an_unfinished_training(tmp_path: Path) -> None:
    """Of a training that has not ended, the newest checkpoint has the curves; of one that has, its own history."""
    run = baseline_done(tmp_path)
    files.write_bytes(run.inside("baseline", "history.npz"), history().to_bytes())
    ended = run.inside("baseline", "history.npz")
    (folder := run.inside("baseline", "checkpoints", 10)).mkdir(parents=True)
    (older := run.inside("baseline", "checkpoints", 9)).mkdir()
    older.joinpath("history.npz").write_bytes(b"not the newest")
    assert "not finished" not in text_of(write_report(run.path))

    ended.rename(folder / "history.npz")
    page = write_report(run.path).read_text()

    assert "baseline, not finished: up to its last checkpoint" in page and "is not a history" not in page
    assert "curves" in Page(page).ids


def test_report_shows_the_measures_of_the_baseline(tmp_path: Path) -> None:
    """Baseline models, folds, classes, most confused pairs and warnings each have a section."""
    arguments = text_of(write_report(with_measures(baseline_done(tmp_path)).path))
    for expected in (
        "the trained model n = 360 validation rows 0.95 0.9 to 0.98",
        "logistic regression as good L2 penalty 1, standardized, on 1077 train rows (0.21 s) 0.93 0.89 to 0.96",
        "not applicable: the time allows 3 of 1077 train rows", "trivial prediction majority class (3) 0.1",
        "accuracy 0.944 ± 0.012 (standard deviation) over 5 folds of the training rows",
        "fold 3: 0.95", "cat → dog (7 rows, 9 % of cat)", "cat 80 0.91 0.875 0.8 to 0.93 0.89", "unseen 0 ",
        "12 3 UserWarning a scheduler came first loop.py:7",
    ):  # fmt: skip
        assert expected in arguments, expected


def test_report_leaves_out_sections_without_measures(tmp_path: Path) -> None:
    """A baseline without folds, classes or warnings has no headings for them; a reason is shown."""
    only = {"score": None, "baseline_models": [], "cross_validation": {"not_applicable": "no time"}}
    arguments = text_of(write_report(with_measures(baseline_done(tmp_path), only).path))
    assert "Cross-validation Not applicable: no time" in arguments
    assert not [heading for heading in ("Baseline models", "Per class", "Warnings raised") if heading in arguments]


def test_report_refuses_changed_evidence(tmp_path: Path) -> None:
    """Evidence that is not as recorded is left out and listed as missing."""
    run = with_measures(baseline_done(tmp_path))
    files.write_json(run.inside("baseline", "evidence.json"), {"values": {**MEASURES, "worst_pairs": []}})
    arguments = text_of(write_report(run.path))
    assert "Baseline models" not in arguments and "baseline/evidence.json is not what the ledger recorded" in arguments


def test_report_shows_the_classes_of_lowest_recall(tmp_path: Path) -> None:
    """A table of a thousand classes shows those of the lowest recall, and how many are left out."""
    row = MEASURES["per_class"][0]
    many = [{**row, "class": f"c{i}", "recall": i / 1000} for i in reversed(range(1000))]
    arguments = text_of(write_report(with_measures(baseline_done(tmp_path), {**MEASURES, "per_class": many}).path))
    assert (
        "c0 80" in arguments
        and "c39 80" in arguments
        and "c40 80" not in arguments
        and "960 classes of higher recall" in arguments
    )


@pytest.mark.parametrize(
    "make", [lambda root: baseline_done(root), lambda root: baseline_done(root, branch="insufficient")]
)
def test_report_of_an_unfinished_run(tmp_path: Path, make: object) -> None:
    """The page says what has not happened yet, and needs only the ledger."""
    run = make(tmp_path)  # type: ignore[operator]
    assert "gate finalization" in text_of(write_report(run.path))


def test_report_of_a_run_without_a_plan(tmp_path: Path) -> None:
    """One ledger entry is enough for a page."""
    run = Run.at(tmp_path, "fresh")
    with opened(run, experiment="digits"):
        pass
    arguments = text_of(write_report(run.path))
    assert "There is no plan yet" in arguments and "Validation: not scored yet" in arguments


def test_report_and_screens_tell_what_the_plan_accepts_from_a_waiver(tmp_path: Path, cli: Cli) -> None:
    """What a statement of the plan accepts was not waived; page and screens name who accepts it."""
    run = Run.at(tmp_path / "runs", "few")
    said = "Ada: there are no more rows"
    few = replace(passed("slices"), outcome="inconclusive", acceptable="small_sample", accepted_by=said)
    with opened(run, experiment="digits") as ledger:
        freeze(run, ledger, CONFIG)
        judge(ledger, "planning", few)

    page = text_of(write_report(run.path))
    assert (
        "accepted (inconclusive)" in " ".join(page.split()) and f"accepted by {said}" in page and "waived" not in page
    )
    for command in ("explain", "checklist"):
        _, out, _ = cli(command, str(run.path), *(["slices"] if command == "explain" else []))
        assert said in " ".join(out.split()) and "waived" not in out


def test_report_and_screen_say_why_a_score_is_not_judged(tmp_path: Path) -> None:
    """A score under a closed baseline gate is not compared with the target, which differs from not being scored."""
    run = Run.at(tmp_path, "shut")
    with opened(run, experiment="digits") as ledger:
        freeze(run, ledger, CONFIG)
        judge(ledger, "planning", passed("seeds_fixed"))
        assert score_lines(run.state()).plain == "validation: not scored yet"
        judge(ledger, "baseline", replace(passed("rows_independent"), outcome="failed"))

    assert score_lines(run.state()).plain == "validation: not judged while the baseline gate is closed"
    assert "Validation: not judged while the baseline gate is closed." in text_of(write_report(run.path))


def test_report_lists_unreadable_files(tmp_path: Path) -> None:
    """A broken diagnosis or history is listed as not checked, and the rest is shown."""
    run = mended(tmp_path)
    run.inside("diagnostics", "1", "diagnosis.json").write_text("{")
    run.inside("baseline", "history.npz").write_bytes(b"no history")
    arguments = text_of(write_report(run.path))
    assert "diagnostics/1/diagnosis.json: is not JSON" in arguments
    assert "baseline/history.npz: is not a history" in arguments
    assert "after the fix, round 1" in arguments


def test_report_marks_expired_waivers(tmp_path: Path) -> None:
    """An expired waiver is marked as such, and its item has its own outcome."""
    run = mended(tmp_path)
    with opened(run) as ledger:
        over = {"phase": "finalization", "item": "latency", "who": "Bob", "why": "a rehearsal", "expires": "2020-01-01"}
        ledger.append("waiver", over)
    page = text_of(write_report(run.path))
    shown = {row.item.id: row.label for row in collect(run).phases[-1].rows}

    assert (shown["latency"], shown["target_on_test"]) == ("not implemented", "waived")
    assert "2020-01-01 not valid" in page and f"{LATER} not valid" not in page
    assert f"verify {run.path.name}" not in page and f"verify ./{run.path.name}" in page


def test_report_refuses_a_changed_ledger(tmp_path: Path) -> None:
    """A report of a changed ledger is refused, and no file is written."""
    run = mended(tmp_path)
    run.ledger_path.write_bytes(run.ledger_path.read_bytes().replace(b"shadow", b"shadov"))
    with pytest.raises(Refused, match="the ledger was changed"):
        write_report(run.path)
    assert not run.inside("report.html").exists()


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "make", "drawn"),
    [("report", mended, True), ("report", baseline_done, False), ("status", mended, False)],
)
def test_report_imports_only_what_it_draws_with(
    tmp_path: Path, command: str, make: Callable[[Path], Run], drawn: bool
) -> None:
    """No record command imports torch, hydra or mlflow, and matplotlib is imported only to draw a curve."""
    run = make(tmp_path)
    heavy = ["torch", "hydra", "mlflow", "matplotlib", "sklearn", "scipy"]
    code = f"""
import sys
from pipeline.__main__ import main
code = main([{command!r}, {str(run.path)!r}])
print(*(set({heavy}) & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (process.returncode, process.stderr.split()) == (0, ["matplotlib"] if drawn else [])
    assert command == "status" or process.stdout.split() == [str(run.inside("report.html"))]


def test_panels_show_the_loss_and_every_metric() -> None:
    """Loss on both splits, the metric with its bounds, x in epochs whichever table a value stands in."""
    loss, accuracy = panels(history())
    assert [(line.split, float(line.x[-1])) for line in loss.lines] == [("train", 5.0), ("val", 5.0)]
    assert accuracy.references == {"target": 0.95, "trivial": 0.1}
    assert loss.log and not accuracy.log


def test_panels_draw_references_with_the_deciding_metric() -> None:
    """Target, trivial score and baseline models are drawn with the deciding metric, which comes first."""
    made = history()
    made.facts.update({"decides/roc_auc": 1.0, "baseline_model/ridge": 0.7, "best_epoch": 4.0})
    for epoch in range(1, 6):
        made.log_epoch(epoch, {"val/roc_auc": 0.9})
    loss, auc, accuracy = panels(made)
    assert auc.title == "roc_auc" and auc.references == {"target": 0.95, "trivial": 0.1, "ridge": 0.7}
    assert accuracy.references == {} and {panel.best_epoch for panel in (loss, auc, accuracy)} == {4.0}


@pytest.mark.parametrize(("low", "high", "log"), [(0.02, 0.9, False), (4.0, 300.0, True), (1.0, 8.0, False)])
def test_panels_choose_a_logarithmic_axis(low: float, high: float, log: bool) -> None:
    """The axis is logarithmic for a perplexity that falls from 300 to 4, but not for a fraction or a small change."""
    made = History()
    made.log_epoch(1, {"val/m": high})
    made.log_epoch(2, {"val/m": low})
    assert panels(made)[0].log is log


def test_panels_count_epochs_from_their_start() -> None:
    """Epochs 0, 1, 2 and epochs 1, 2, 3 both end at 3."""
    ends = []
    for first in (0, 1):
        made = History()
        for epoch in range(first, first + 3):
            made.log_epoch(epoch, {"val/loss": 1.0})
        ends.append(panels(made)[0].lines[0].x.tolist())
    assert ends == [[1.0, 2.0, 3.0]] * 2


def test_panels_mark_the_first_nonfinite_epoch() -> None:
    """NaN is not a point of the curve, and the epoch of the first NaN is marked."""
    loss, _ = panels(history(breaks_at=7))
    assert loss.nonfinite[0] == pytest.approx(0.7)
    assert all(np.isfinite(line.y).all() for line in loss.lines)
    assert "stroke: var(--bad)" in inline_svg(loss, "a")


def test_inline_svg_takes_its_colours_from_the_page() -> None:
    """Curves, references and the best epoch are drawn, and every colour is a variable of the page."""
    made = history()
    made.facts.update({"decides/accuracy": 1.0, "baseline_model/ridge": 0.7, "best_epoch": 4.0})
    accuracy = inline_svg(panels(made)[1], "a")
    for variable in ("val", "good", "soft", "baseline", "line"):
        assert f"var(--{variable})" in accuracy
    assert not re.search(r"#[0-9a-f]{6}[;\"]", accuracy)
    assert "<style" not in accuracy and "<!DOCTYPE" not in accuracy and "<metadata" not in accuracy
    assert accuracy == inline_svg(panels(made)[1], "a")


@pytest.mark.parametrize("values", [(0.0, 1.0), (-3.0, 1e6), (2.0, 2.0), (1e-7, 4.0), (2.0, 70.0), (1.0, 3e38), (5.0,)])
def test_inline_svg_has_readable_ticks(values: tuple[float, ...]) -> None:
    """Both axes have a few ticks with plain numbers, whatever the range, also for a single point."""
    made = History()
    for epoch, value in enumerate(values, 1):
        made.log_epoch(epoch, {"val/loss": value})
    [panel] = panels(made)
    labels = re.findall(r"text-anchor: (middle|end)[^>]*>([^<]*)<", inline_svg(panel, "a"))
    for anchor in ("middle", "end"):
        numbers = [float(text) for where, text in labels if where == anchor]
        assert 2 <= len(numbers) <= 12 and numbers == sorted(set(numbers))


def test_figures_show_text_as_it_is() -> None:
    """A name with a dollar sign is not read as math text, and one with a tag is escaped in the SVG."""
    names = ["$50 to $100", "<script>alert(1)</script>", "$\\frac{"]
    svg = plots.confusion_matrix(np.eye(3, dtype=int), names)["svg"]
    made = History()
    made.log_epoch(1, {f"val/{name}": 0.5 for name in names})
    curve = plots.learning_curve(made)["svg"]
    assert b"<script" not in svg + curve
    assert {panel.title for panel in panels(made)} == set(names)
    drawings = "".join(inline_svg(panel, panel.title) for panel in panels(made))
    assert "<script" not in drawings and "&lt;script&gt;alert(1)&lt;/script&gt; over epochs" in drawings


def test_figures_are_deterministic() -> None:
    """PNG and SVG of curve and matrix have the same bytes when drawn again, also for an empty history."""
    matrix = np.diag([5, 3, 9])
    draws = (
        lambda: plots.learning_curve(history()),
        lambda: plots.confusion_matrix(matrix, ["cat", "dog", "a rather long name"]),
    )
    for draw_it in draws:
        picture = draw_it()
        assert picture["png"].startswith(b"\x89PNG") and b"<svg" in picture["svg"]
        assert picture == draw_it()
    assert plots.learning_curve(History())["png"].startswith(b"\x89PNG")
    assert plots.confusion_matrix(np.eye(60, dtype=int), [str(i) for i in range(60)])["png"]
    with pytest.raises(ValueError, match=r"2 classes is \[2, 2\], got \[3, 3\]"):
        plots.confusion_matrix(matrix, ["a", "b"])


def test_report_has_every_section_of_a_complete_run(tmp_path: Path) -> None:
    """Scores, modules, chain, arms, trials, quality and timeline are drawn or said, and hovering names values."""
    run = complete(tmp_path)
    page = write_report(run.path).read_text()
    words = text_of(run.inside("report.html"))
    for expected in (
        "the model, sealed test rows: 0.944, 95 % interval 0.92 to 0.96, n = 72", "logistic regression: 0.93",
        "since epoch 0.7: nan loss", "body.0, step 6: gradient norm not finite", "head, step 1: update ratio 0.003",
        "learning rate 3 → 0.003: accuracy 0.96, confirmed", "Adopted by the trials: optimizer.lr=0.003",
        "c1: optimizer.lr=0.003, seed 2: 0.97", "cat predicted as cat: 36 (100.0%)", "class <b>dog</b>: 0.92",
        "missing, severity 5: 0.77", "onnxruntime: p99 0.18 ms", "2 checks of this run are waived, not passed.",
        "branch: insufficient", "Ada waived finalization/latency measured again before the release",
        "run.name=digits-hot_again",
    ):  # fmt: skip
        assert expected in words, expected
    assert "<b>dog" not in page and collect(run).unreadable == []
    assert Page(page).open == []


def test_report_leaves_out_evidence_of_another_form(tmp_path: Path) -> None:
    """A measurement that was not taken, or is not as this version writes it, has no panel; the rest is shown."""
    run = complete(tmp_path)
    for broken in ({"why": "no rows"}, None, {"metric": 3, "scores": "none"}):
        path = run.inside("finalization", "evidence.json")
        files.write_json(path, {"values": {**QUALITY, "slices": broken, "corruption": broken}})
        with opened(run) as ledger:
            file = {"path": "finalization/evidence.json", "sha256": files.sha256(path)}
            ledger.append("phase.finished", {"phase": "finalization", "round": 1, "evidence": file})
        assert [panel.name for panel in collect(run).quality] == ["calibration", "adversarial", "latency"]


def test_report_of_a_long_training_is_small_and_quick(tmp_path: Path) -> None:
    """A hundred thousand steps with 40 modules take less than two seconds of the processor and three megabytes."""
    run = baseline_done(tmp_path)
    recorded, steps = History(), 100_000
    recorded.facts.update(steps_per_epoch=1000, target=0.95)
    recorded.log_steps(1, {"train/loss": list(np.geomspace(2.3, 0.02, steps)), "lr": [0.1] * steps})
    for epoch in range(1, 101):
        recorded.log_epoch(epoch, {"val/loss": 1 / epoch, "val/accuracy": 1 - 1 / (1 + epoch)})
    recorded = with_modules(recorded, tuple(f"encoder.layers.{at}" for at in range(40)), steps, every=100)
    files.write_bytes(run.inside("baseline", "history.npz"), recorded.to_bytes())
    write_report(baseline_done(tmp_path, "warm").path)  # imports
    started = time.process_time()
    page = write_report(run.path)
    assert time.process_time() - started < 2
    assert page.stat().st_size < 3_000_000
    assert "22 modules between these are left out" in text_of(page)


def test_heat_map_has_the_median_of_each_group_of_steps() -> None:
    """Cells are medians; a value that is not finite makes its cell infinite, and one without a value is NaN."""
    recorded = History()
    for step in range(1, 101):
        recorded.log_step(step, {"grad_norm/a": float(step)} | ({"grad_norm/b": 1.0} if step > 50 else {}))
    [found] = heat_maps(recorded, "x")
    assert found.modules == ("a", "b") and found.cells.shape == (2, 24)
    assert found.cells[0, 0] == 3 and np.isnan(found.cells[1, 0]) and found.cells[1, -1] == 1
    assert heat_maps(history(), "x") == []


def test_timeline_tells_what_happened_in_order(tmp_path: Path) -> None:
    """Gates, branches and people are events, and what a phase only notes is not."""
    events = [event.text for event in timeline(read_ledger(complete(tmp_path).ledger_path))]
    assert events[:4] == ["run created", "plan revision 1 frozen", "planning ran", "planning gate open"]
    assert events.index("branch: insufficient") < events.index("2 configurations compared")
    assert events[-2:] == ["scored on the test rows", "Ada waived finalization/latency"]


def test_table_of_runs_links_to_their_pages(tmp_path: Path) -> None:
    """Every run has a row with its verdict; one whose ledger was changed is named, and the others are shown."""
    write_report(mended(tmp_path, "first").path)
    baseline_done(tmp_path, "second")
    broken = baseline_done(tmp_path, "third")
    broken.ledger_path.write_bytes(broken.ledger_path.read_bytes().replace(b"digits", b"digitz"))
    path, damaged = write_table(tmp_path)
    page = path.read_text()
    assert 'href="first/report.html"' in page and "second" in page and 'href="second' not in page
    assert "release blocked" in page and "sufficient on validation" in page
    assert len(damaged) == 1 and "ledger" in damaged[0]


def test_status_gives_details_the_width_of_a_narrow_terminal(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 80 columns a check has its details below it; in 120 they are a column of a table."""
    run = baseline_done(tmp_path / "runs")
    with opened(run) as ledger:
        judge(ledger, "finalization", replace(passed("latency"), outcome="failed", why="word " * 30))
    lines = {}
    for width in ("80", "120"):
        monkeypatch.setenv("COLUMNS", width)
        lines[width] = cli("status", str(run.path))[1].splitlines()
    assert "  word word" in "\n".join(lines["80"]) and not any("details" in line for line in lines["80"])
    assert any("details" in line for line in lines["120"])
    assert all(len(line) <= 80 for line in lines["80"] if "word" in line)


def test_status_shows_diagnosis_and_trials(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The diagnosis has its causes and the trials a row each, and NO_COLOR takes the colours away."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = cli("status", str(mended(tmp_path / "runs").path))
    words = " ".join(re.sub(r"\x1b\[[\d;]*m", "", out).split())
    assert "diagnosis, round 1: learning rate too high (confirmed, 0.93 by observation), clipping missing" in words
    assert "c1: optimizer.lr=0.003 0.97 +0.87 0.031 adopted" in words
    assert "explain" in words and not re.search(r"\x1b\[[\d;]*3[0-7]m", out)


@pytest.mark.parametrize("value", ["", "much", [], {}, 10**400])
def test_compare_test_with_target_refuses_a_value_that_is_no_number(finished: Run, value: Any) -> None:
    """A ledger that somebody rewrote gives a message instead of a traceback, whatever the item holds."""
    state = finished.state()
    gate = state.gates["finalization"]
    others = [item for item in gate.items if item.id != TEST_ITEM]
    for wrong in (Item(TEST_ITEM, "", "failed", value, 0.9), Item(TEST_ITEM, "", "failed", 0.8, value)):
        state.gates["finalization"] = replace(gate, items=(*others, wrong))
        with pytest.raises(Refused, match=f"ledger.jsonl: value and bound of {TEST_ITEM} are not numbers"):
            compare_test_with_target(state)
