from __future__ import annotations

import ast
import html
import io
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from diagnostics.diagnose import diagnose
from pipeline.errors import UserError, fault, quoted
from pipeline.escaping import code_span, hidden_characters, markdown, visible, visible_lines
from pipeline.evaluation.metric_config import metric_from_config
from pipeline.history import History
from pipeline.reporting import plots, ranking, terminal
from pipeline.reporting.page import write_report
from pipeline.reporting.progress import TrainingProgress
from pipeline.results import PHASES
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run, opened
from pipeline.tracking.description import NOTE, datasets, tags
from pipeline.tracking.run_export import RunExport, Training, params, training_points
from tests.conftest import SMALL, Cli
from tests.ledger_fixtures import CONFIG, baseline_done, freeze, gate, history, passed
from tests.test_architecture import calls, parts, product

ESCAPES = "\x1b[31m\x1b]0;title\x07\x1b]8;;http://evil.example\x1b\\\x9b2J"
HOSTILE = (
    f"kitty[/foo][bold]:smile:{ESCAPES}\x00<script>alert(1)</script>|`code`*b*[x](http://y)\u202e\u200b\n# head\r✓ tail"
)
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def hostile(value: Any) -> Any:
    """The value with every text in it made hostile."""
    if isinstance(value, Mapping):
        return {key: hostile(part) for key, part in value.items()}
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return value + HOSTILE if isinstance(value, str) else value


@pytest.fixture
def attacked(tmp_path: Path) -> Run:
    """A run at its closed last gate, in which every name, reason, note and owner is hostile."""
    run = Run.at(tmp_path / "runs", "digits-hot")
    with opened(run, experiment=HOSTILE) as ledger:
        config = {**hostile(CONFIG), "plan": {"owner": "Ada", "purpose": HOSTILE, "approvers": [HOSTILE]}}
        facts = {"splits": {"val": {"digest": HOSTILE, "rows": 3, "counts": {HOSTILE: 3}}}, "class_names": [HOSTILE]}
        checks = {
            phase: [{"id": f"check_{phase}", "ask": HOSTILE, "not_built": HOSTILE, "with": {}, "waivable": True}]
            for phase in PHASES
        }
        plan = plans.Plan(1, config, checks, facts)
        record = {"revision": 1, "digest": plan.digest, "file": run.relative(plans.write(run, plan)), "changed": {}}
        ledger.append("plan.frozen", record)
        gate(ledger, "planning", passed("seeds_fixed", waivable=False), passed("data", ask=HOSTILE, why=HOSTILE))
        gate(ledger, "baseline", passed("fits", ask=HOSTILE, value=HOSTILE, bound=HOSTILE, relation="is", unit=HOSTILE))
        score = {"split": "val", "metric": HOSTILE, "value": 0.9, "low": 0.8, "high": 0.95, "n": 360}
        chosen = {"phase": "baseline", "round": 1, "weights": "f" * 64, "score": score}
        ledger.append("candidate.chosen", chosen)
        decided = {"branch": "sufficient", "target": True, "trivial": True, "symptoms": [], "score": score}
        ledger.append("branch.decided", {"phase": "baseline", "round": 1, **decided, "target_value": 0.5})
        failed = passed("target_on_test", outcome="failed", value=0.9, bound=0.95, why=HOSTILE, unit=HOSTILE)
        unbuilt = passed("latency", outcome="errored", why=f"not built: {HOSTILE}", ask=HOSTILE)
        owner = passed("owner_approval", outcome="pending", sign_off="owner", why=HOSTILE)
        gate(ledger, "finalization", failed, unbuilt, owner)
        person = {"who": HOSTILE, "why": HOSTILE, "expires": "2999-01-01"}
        ledger.append("waiver", {"phase": "finalization", "item": "target_on_test", **person})
        ledger.append("phase.failed", {"phase": "finalization", "round": 1, "why": HOSTILE})
    log = history(breaks_at=7)
    log.log_epoch(6, {f"val/{HOSTILE}": 0.5})
    log.event("warning", 3, category=HOSTILE, message=HOSTILE, where=HOSTILE, count=1)
    files.write_bytes(run.inside("baseline", "history.npz"), log.to_bytes())
    return run


def check_screen(output: str) -> None:
    """Assert that a terminal shows the hostile text, and does nothing else with it."""
    assert FORBIDDEN.findall(output) == []
    assert "\n# head" not in output.replace("# Gates of", "") and "\n✓ tail" not in output


WAIVE = ("--who", "[/foo]", "--why", "[/foo] shadow only", "--expires", "2026-12-31")
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status", "digits-hot"),
    "a gate": ("status", "digits-hot", "--gate", "finalization"),
    "a planned gate": ("status", "digits-hot", "--gate", "optimization"),
    "a gate with units": ("status", "digits-hot", "--gate", "baseline"),
    "status as JSON": ("status", "digits-hot", "--json"),
    "all runs": ("status",),
    "all runs as JSON": ("status", "--json"),
    "explain": ("explain", "digits-hot"),
    "explain one check": ("explain", "digits-hot", "target_on_test"),
    "checklist": ("checklist", "digits-hot"),
    "diff": ("diff", "digits-hot", "other"),
    "verify": ("verify", "digits-hot"),
    "report": ("report", "digits-hot"),
    "waive": ("waive", "digits-hot", "latency", *WAIVE),
    "approve": ("approve", "digits-hot", "--who", "[/foo]"),
    "rollback": ("rollback", "digits-hot", "--who", "[/foo]"),
    "diagnose": ("diagnose", "runs/digits-hot"),
    "diagnose as JSON": ("diagnose", "runs/digits-hot", "--json"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_print_hostile_texts_as_text(attacked: Run, cli: Cli, name: str) -> None:
    """No command fails or sends a control character to the terminal because of a name or reason in a run."""
    other = baseline_done(attacked.path.parent, "other")
    assert other.exists()
    code, out, err = cli(*COMMANDS[name])
    assert code in (0, 2, 3, 4), err
    assert "Traceback" not in err
    check_screen(out + err)


@pytest.mark.parametrize("name", ["status", "explain", "checklist", "report"])
def test_commands_keep_hostile_texts_readable(attacked: Run, cli: Cli, name: str) -> None:
    """The words of a hostile name are still there, with its brackets."""
    _, out, _ = cli(*COMMANDS[name])
    out = html.unescape(attacked.inside("report.html").read_text()) if name == "report" else out
    words = re.sub(r"[\\\s]", "", out)
    assert "kitty[/foo][bold]:smile:" in words and "x1b[31m" in words


@pytest.mark.parametrize("command", ["waive", "approve", "rollback"])
def test_hidden_characters_are_refused_before_recording(attacked: Run, cli: Cli, command: str) -> None:
    """A name or reason with a control character is refused with its escape, and the ledger is as before."""
    before = attacked.ledger_path.read_bytes()
    options = {
        "waive": ("latency", "--who", "Ada", "--why", f"shadow only {ESCAPES}", "--expires", "2026-12-31"),
        "approve": ("--who", "Ada", "--note", f"read \u202e{ESCAPES}"),
        "rollback": ("--who", "Ada\u200b", "--why", "broken"),
    }
    code, out, err = cli(command, "digits-hot", *options[command])
    assert code == 2 and "expected one line of visible characters" in err
    assert FORBIDDEN.findall(out + err) == []
    assert attacked.ledger_path.read_bytes() == before


def test_report_shows_hostile_texts_as_text(attacked: Run) -> None:
    """No control character and no tag of a hostile text is in the page, whose own structure is intact."""
    figure = plots.confusion_matrix(np.eye(2, dtype=int), [HOSTILE, "\udc80"])
    files.write_bytes(attacked.inside("baseline", "confusion_matrix.png"), figure["png"])
    page = write_report(attacked.path).read_text()
    assert FORBIDDEN.findall(page) == []
    assert "<script" not in page and page.count("&lt;script&gt;") > 5
    assert page.count("<table") == page.count("</table>") and page.rstrip().endswith("</html>")
    assert "kitty[/foo][bold]:smile:\\x1b[31m" in html.unescape(page)
    assert FORBIDDEN.findall(figure["svg"].decode()) == []


def test_diagnosis_page_is_markdown_with_hostile_names() -> None:
    """A hostile metric makes no heading, link, HTML or emphasis of its own in incident.md."""
    log = history(breaks_at=7)
    log.epoch[f"val/{HOSTILE}"] = log.epoch.pop("val/accuracy")
    log.step[f"train/{HOSTILE}"] = log.step["train/loss"].copy()
    page = diagnose(log).incident()
    assert FORBIDDEN.findall(page) == []
    tokens = MarkdownIt("commonmark").parse(page)
    inline = [part for token in tokens for part in token.children or ()]
    kinds = {token.type for token in [*tokens, *inline]}
    assert not kinds & {"html_block", "html_inline", "link_open", "em_open", "image"}
    assert all("head" not in tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open")
    assert FORBIDDEN.findall(diagnose(log)._repr_html_()) == []


def test_tracker_accepts_hostile_names_and_texts(attacked: Run) -> None:
    """Params, metrics and tags have names that MLflow accepts, and values without control characters."""
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    export = RunExport.of(attacked.path)
    texts = {**params(export), **tags(export)}
    for name in texts:
        _validate_param_name(name)
        _validate_tag_name(name)
    training = Training(attacked, "baseline", attacked.inside("baseline", "history.npz"), "FINISHED")
    log = History.load(training.history)
    for name in ("val/../x", "./val", "/", "a//b", ".."):
        log.log_epoch(7, {name: 1.0})
    for name in training_points(training, log, 0):
        _validate_metric_name(name)
    assert [name for name, text in texts.items() if FORBIDDEN.search(text)] == []
    assert not any(FORBIDDEN.search(split.name) for split in datasets(export))
    rendered = MarkdownIt("commonmark").enable("table").render(texts[NOTE])
    assert "<script" not in rendered and "<a " not in rendered and rendered.count("<table>") == 1


def test_plan_with_hostile_texts_is_read_back(attacked: Run) -> None:
    """The plan's file shows no hidden character, and holds the same texts."""
    assert FORBIDDEN.findall(attacked.inside("plan", "1.yaml").read_text()) == []
    assert plans.load(attacked).config["plan"]["purpose"] == HOSTILE


def test_plan_refuses_bytes_that_are_not_text(tmp_path: Path) -> None:
    """A class name from a folder whose name is not UTF-8 is refused with its key, since no plan can hold it."""
    run = Run.at(tmp_path, "demo")
    with opened(run) as ledger, pytest.raises(UserError, match=r"plan.purpose: .* got 'caf\\udce9'"):
        freeze(run, ledger, {**CONFIG, "plan": {"purpose": "caf\udce9"}})
    assert not run.inside("plan").exists()


def write_table(path: Path, rows: int = 120) -> None:
    """A table with a hostile label, class and category in each third row."""
    import csv

    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x1", f"x2{HOSTILE}", "label[/foo]"])
        for row in range(rows):
            name = (HOSTILE, "[bold]dog", "cat\x1b]0;t\x07")[row % 3]
            writer.writerow([row % 3 + 0.01 * row, (row * 7) % 13, name])


TABLE = ("experiment=csv", "data.path=rows.csv", "data.label='label[/foo]'", "data.class_names=null", "data.ignore=[]",
         "task.class_weights=none", "preprocess.one_hot=false", "run.name=hostile", *SMALL[1:])  # fmt: skip


@pytest.mark.parametrize("phase", ["planning", pytest.param("auto", marks=[pytest.mark.slow, pytest.mark.process])])
def test_phases_print_hostile_classes_and_columns(tmp_path: Path, cli: Cli, phase: str) -> None:
    """The phases print the columns and classes of a hostile table as text."""
    write_table(tmp_path / "rows.csv")
    code, out, err = cli(f"phase={phase}", *TABLE)
    assert code in (0, 3, 4), out + err
    assert "Traceback" not in err
    check_screen(out + err)
    code, out, err = cli("explain", "hostile")
    check_screen(out + err)
    assert FORBIDDEN.findall((tmp_path / "runs" / "hostile" / "report.html").read_text()) == []


def test_errors_of_user_code_are_printed_as_text(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of the user's model with a hostile message gives one message with his line, and exit code 2."""
    source = f"def load():\n    raise ValueError({HOSTILE!r})\n\ndef net():\n    raise OSError({HOSTILE!r})\n"
    (tmp_path / "hostile_code.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = cli("preflight", "hostile_code:net", "hostile_code:load")
    assert code == 2 and "hostile_code.py:" in err and "kitty[/foo]" in err
    assert FORBIDDEN.findall(out + err) == []


def test_ranking_prints_hostile_texts_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metrics, overrides and reasons in the tables of a sweep are text, also as JSON; a score of NaN has a row."""
    score = {"metric": HOSTILE, "value": "nan", "low": "nan", "high": 0.5, "n": 3}
    row = {
        "run": "a",
        "overrides": [f"x={HOSTILE}"],
        "exit_code": 2,
        "score": score,
        "branch": HOSTILE,
        "why": [HOSTILE],
    }
    monkeypatch.setattr(ranking, "_describe", lambda root, job: {**row, "run": job})
    for as_json in (False, True):
        ranking.show(tmp_path, ["a", "b"], as_json)  # type: ignore[list-item]  # the name of a job is all that is used
        check_screen(capsys.readouterr().out)


@pytest.mark.parametrize("is_live", [False, True])
def test_progress_prints_hostile_names_as_text(is_live: bool) -> None:
    """The name of a training and of its metric are text in the live line and in the plain one."""
    screen = terminal.console()
    screen.file, screen.width, screen._force_terminal = io.StringIO(), 4000, is_live
    metric = replace(metric_from_config({"kind": "classification", "metric": "accuracy"}), name=HOSTILE)
    now = iter(range(0, 10_000, 20))
    watch = TrainingProgress(screen, HOSTILE, metric, lambda: next(now))
    log = history()
    log.facts["max_steps"] = 50
    watch.start(None, None, log, 1)  # type: ignore[arg-type]  # it only reads the history
    watch.validated(1, {f"val/{HOSTILE}": 0.5})
    watch.validated(2, {f"val/{HOSTILE}": 0.4})
    watch.finish()
    own = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", screen.file.getvalue()).replace("\r", "")
    assert FORBIDDEN.findall(own) == [] and "kitty[/foo][bold]:smile:" in own


# --- the functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["runs\\a", r"\d+\\", r"[/x]\[y]", "caf\\xe9", "C:\\"])
def test_fault_quotes_text_without_doubling_backslashes(text: str) -> None:
    """A path or pattern is quoted as it is, also where one message quotes another."""
    inner = fault("a", "is wrong", got=text)
    outer = UserError(fault("b", "failed", got=inner))
    assert inner == f"a: is wrong, got '{text}'"
    assert str(outer) == f'b: failed, got "{inner}"'


@given(text=st.text())
@example(text="'\"")
@example(text="\\'\"\n")
def test_fault_escapes_once(text: str) -> None:
    """A message that is escaped again is the same, and so is a text that was escaped before it was quoted."""
    once = UserError(fault("a", "is wrong", got=text)).faults[0]
    assert UserError(once).faults[0] == once
    assert quoted(quoted(text)[1:-1]) in (quoted(text), f'"{quoted(text)[1:-1]}"', f"'{quoted(text)[1:-1]}'")


def test_failure_is_one_line(attacked: Run, cli: Cli) -> None:
    """The faults of a failed phase are separated by semicolons, and not by the escape of a line break."""
    with opened(attacked) as ledger:
        ledger.append("phase.failed", {"phase": "finalization", "round": 1, "why": "a: is wrong\nb: is wrong"})
    for command in ("status", "explain"):
        assert "a: is wrong; b: is wrong" in cli(command, attacked.path)[1]


def test_visible_escapes_every_control_and_direction() -> None:
    """Each control, surrogate, line separator and directional or zero-width character is shown as its escape."""
    characters = map(chr, range(0x110000))
    directions = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"}
    hidden = [c for c in characters if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}]
    hidden += [c for c in map(chr, range(0x110000)) if unicodedata.bidirectional(c) in directions]
    assert [hex(ord(c)) for c in hidden if visible(c) == c and unicodedata.category(c) != "Cn"] == []
    assert visible("a\x1b\u202e\U000e0041\n") == r"a\x1b\u202e\U000e0041\n"


@pytest.mark.parametrize("text", ["Köln, 東京 ⚠️ [/foo] – 5 µs", "a b", "", "C:\\temp", "नमस्ते"])
def test_visible_keeps_what_can_be_seen(text: str) -> None:
    """Letters, signs and spaces of any language are unchanged."""
    assert visible(text) == text and hidden_characters(text) == []


@given(st.text())
def test_visible_lines_adds_no_line(text: str) -> None:
    """Only line feeds are line breaks, and the result has no control character."""
    shown = visible_lines(text)
    assert FORBIDDEN.findall(shown) == []
    assert shown.count("\n") == text.replace("\r\n", "\n").count("\n")


def plain_text(tokens: list[Any]) -> str:
    return "".join(t.content for t in tokens if t.type == "text")


@given(st.one_of(st.text(), st.text("[]()<>!&|*_`#-=+.1~\\ ab/:;", max_size=20)))
def test_markdown_shows_the_text_itself(text: str) -> None:
    """Rendered in a list item, the result is one paragraph of the text, without emphasis, links or HTML."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"- {markdown(text)} end")
    kinds = [token.type for token in tokens]
    assert kinds == ["bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close",
                     "list_item_close", "bullet_list_close"]  # fmt: skip
    children = tokens[3].children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children).split() == f"{visible(text)} end".split()


@given(st.text("`| a\n[", min_size=1))
def test_code_span_shows_the_text_itself(text: str) -> None:
    """Rendered, the result is one piece of code with the text in it."""
    (paragraph,) = [t for t in MarkdownIt("commonmark").parse(f"x {code_span(text)}") if t.type == "inline"]
    (code,) = [child for child in paragraph.children or [] if child.type == "code_inline"]
    assert code.content.strip() == visible(text).strip()


@given(st.text(), st.text())
def test_styled_takes_values_as_text(first: str, second: str) -> None:
    """Values are inserted without a reading of their brackets or braces, and keep the colour around them."""
    text = terminal.styled("[red]{first}[/]: [bold]{second}[/]!", first=first, second=second)
    assert text.plain == f"{visible(first)}: {visible(second)}!"
    if visible(second):
        assert [str(span.style) for span in text.spans if span.start == len(visible(first)) + 2] == ["bold"]


@given(st.text(max_size=40))
def test_console_prints_any_text(text: str) -> None:
    """Strings, cells and headers of tables are printed without markup, emoji codes and control characters."""
    screen = terminal.console()
    screen.file, screen.width = io.StringIO(), 400
    table = terminal.new_table(text, "b")
    table.add_row(text, "[/foo]")
    for shown in (text, table):
        screen.print(shown)
    output = screen.file.getvalue()
    assert FORBIDDEN.findall(output) == []
    assert "[/foo]" in output


def test_errors_have_no_control_characters() -> None:
    """The message of an error that quotes another program's text is safe to print, for callers from Python too."""
    assert str(UserError(f"x: {ESCAPES}", "second")) == f"x: {visible(ESCAPES)}\nsecond"


# --- rules for new code ----------------------------------------------------------------------------------------------

PRINTERS = ("pipeline/reporting/terminal.py",)
SAFE = {"visible", "visible_lines"}
MARKUP = re.compile(r"\[/?[a-z]+( [a-z]+)*\]|\[/\]")


def breaks_the_rules(file: str, call: ast.Call) -> str | None:
    """Why a call could print a text as it is; None where it cannot."""
    *owner, name = parts(call.func)
    first = call.args[0] if call.args else None
    if owner == [] and name == "print" and file not in PRINTERS:
        safe = isinstance(first, ast.Call) and parts(first.func)[-1] in SAFE
        return None if safe or (isinstance(first, ast.Name) and first.id == "HELP") else "use terminal.print_lines"
    if name == "Console" and file not in PRINTERS:
        return "use terminal.console"
    is_literal = isinstance(first, ast.Constant | ast.JoinedStr)
    if name == "print" and owner and first is not None and is_literal and MARKUP.search(ast.unparse(first)):
        return "use terminal.styled"
    if name in ("from_markup", "render_markup") and file not in PRINTERS:
        return "use terminal.styled"
    if name == "Markdown" and "hyperlinks=False" not in ast.unparse(call):
        return "a link is a control sequence"
    if name == "Environment" and not {"autoescape", "finalize"} <= {str(keyword.arg) for keyword in call.keywords}:
        return "the page escapes every value"
    return None


def test_new_code_prints_through_the_terminal_module() -> None:
    """Every print of the product escapes what it prints."""
    # The scripts of a bundle are alone with the standard library: they print what they read as JSON texts.
    # A new project is written from templates and a name that is an identifier.
    alone = ("/standalone/", "commands/new.py")
    files = {file: tree for file, tree in product().items() if not any(part in file for part in alone)}
    every_call = ((file, call) for file, tree in files.items() for call in calls(tree))
    wrong = {f"{file}:{call.lineno}": why for file, call in every_call if (why := breaks_the_rules(file, call))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("print(name)", False),
        ("print(visible_lines(name))", True),
        ("print(HELP, end='')", True),
        ("Console()", False),
        ("console().print(f'[red]{name}[/]')", False),
        ("console().print(styled('[red]{name}[/]', name=name))", True),
        ("console().print(f'{name}: done')", True),
        ("Text.from_markup(name)", False),
        ("Markdown(text)", False),
    ],
)
def test_what_the_rule_of_printing_forbids(source: str, allowed: bool) -> None:
    """The rule sees what it forbids."""
    (call,) = [c for c in calls(ast.parse(source)) if ast.unparse(c) == source]
    assert (breaks_the_rules("pipeline/commands/x.py", call) is None) == allowed
