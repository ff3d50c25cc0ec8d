"""`Run` of `from fivegate import Run`: the phases of a run in a Python program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.__main__ import make_hooks, make_registry
from pipeline.commands.status import summary
from pipeline.errors import UserError, fault
from pipeline.escaping import visible
from pipeline.orchestration.execute import execute_run
from pipeline.orchestration.run_request import find_run, resolve_request
from pipeline.python_api import html
from pipeline.python_api.outcome import PhaseOutcome, labels, outcome_of, summary_lines
from pipeline.python_api.overrides import Config, overrides_of
from pipeline.reporting.users_faults import users_faults_named
from pipeline.results import PHASES
from pipeline.run_store.lock import ends_forked_children
from pipeline.run_store.next_step import next_step
from pipeline.run_store.state import RunState
from pipeline.runtime.interrupt import outside_training


class Run:
    """A run that a program takes through its phases, with the records, locks and gates of the command line.

        from fivegate import Run

        run = Run("experiment=digits", "optimizer.lr=0.01", log=print)
        while (outcome := run.advance()).next_phase:
            print(outcome)

    - `config`: overrides as text, a mapping of keys to values, a composed config, the path of a YAML file, or the name
      or folder of an existing run. Further `overrides` follow it.
    - `config_dirs`: folders with configs of your own, as `--config-dir`.
    - `log`: called with each line that the command line would print, for example `print`.

    Nothing is written before `advance`. Raises UserError with every fault of the config.
    """

    def __init__(
        self,
        config: Config,
        *overrides: str,
        config_dirs: Sequence[str | Path] = (),
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._overrides = overrides_of(config, overrides)
        self._config_dirs = [str(Path(folder).resolve()) for folder in config_dirs]
        self._log = log
        self._run, _ = find_run(self._overrides, self._config_dirs)

    @property
    def path(self) -> Path:
        """The folder of the run, whether or not it exists yet."""
        return self._run.path

    @property
    def name(self) -> str:
        return self._run.name

    def advance(self, phase: str | None = None) -> PhaseOutcome:
        """Run the next phase, or the one that is named, and return what its gate said.

        Where no phase can run, because the run is released, exhausted or waits for a person, nothing is done and the
        outcome says what would continue it. Once the last gate was approved, the next call makes the release. Raises
        the errors that the command line prints: UserError (exit code 2) and Refused (3); an interrupted phase continues
        with the next call.
        """
        if phase not in (None, *PHASES):
            raise UserError(fault("phase", "unknown phase", got=phase, among=PHASES))
        step = next_step(self._state(), self.path)
        due = phase or step.phase
        if due is None:
            return outcome_of(self.name, None, self._state(), step, step.exit_code)
        with outside_training(), ends_forked_children(), users_faults_named():
            request = resolve_request([*self._overrides, f"phase={due}"], self._config_dirs)
            outcome = execute_run(make_registry(), make_hooks(self._line), request)
        return outcome_of(self.name, due, self._state(), outcome.next_step, outcome.exit_code(due))

    def status(self) -> dict[str, object]:
        """Return what `status --json` prints: gates, checks, branch, waivers and the next command.

        Raises UserError for a run that does not exist yet.
        """
        if not self._run.exists():
            what = "has not begun"
            raise UserError(fault(self.name, what, expected="a run of which a phase has run", do="Run(...).advance()"))
        return summary(self._run, self._state())

    def _state(self) -> RunState:
        return self._run.state() if self._run.exists() else RunState()

    def _line(self, text: str) -> None:
        if self._log:
            self._log(visible(text))

    def __repr__(self) -> str:
        state = self._state()
        return "\n  ".join([visible(self.name), *summary_lines(state, next_step(state, self.path))])

    def _repr_html_(self) -> str:
        """Return the gates, the score and the next command for notebooks."""
        state = self._state()
        return html.run(self.name, labels(state), summary_lines(state, next_step(state, self.path)))
