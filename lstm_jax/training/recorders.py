"""Recorders of rows and samples for TensorBoard and Weights & Biases, beside `metrics.jsonl`.

Each needs the extra of its name. The environment variables of Weights & Biases apply, such as
`WANDB_PROJECT`; `WANDB_MODE=offline` keeps everything on this machine until `wandb sync`.
"""

import html
import importlib.util
import os
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lstm_jax.files import one_line
from lstm_jax.training.log import Report, Row
from lstm_jax.training.run import RunFolder


class TensorBoardRecorder(AbstractContextManager[Any]):
    """Context manager that writes rows and samples as TensorBoard events.

    Events after `first_step`, left by an interrupted run, are hidden.
    """

    def __init__(self, folder: RunFolder, config: dict[str, Any], first_step: int) -> None:
        import tensorboardX

        directory = str(folder.tensorboard)
        self._writer = tensorboardX.SummaryWriter(directory, purge_step=first_step + 1)

    @staticmethod
    def require() -> None:
        """Raise ValueError, with the cure, if tensorboardX is not installed."""
        if importlib.util.find_spec("tensorboardX") is None:
            cure = "pip install 'lstm-jax[tensorboard]'"
            raise ValueError(f"--tensorboard needs tensorboardX; {cure}")

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def row(self, row: Row) -> None:
        """Write each number of the row as a scalar."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Write the sample as text."""
        self._writer.add_text(f"sample/{prompt}", text, step)


class WandbRecorder(AbstractContextManager[Any]):
    """Context manager that logs rows and samples to a Weights & Biases run, over `step`.

    Resuming a folder's run also resumes its Weights & Biases run; steps logged before an
    interruption are not logged twice. It is named after the folder, and writes to `wandb` in it.
    Raises ValueError if wandb cannot reach its server.
    """

    def __init__(self, folder: RunFolder, config: dict[str, Any], first_step: int) -> None:
        import wandb

        run_dir, own = folder.path, folder.path / "wandb"
        self._as_html, self._last_step_file = wandb.Html, own / "last-step.txt"
        last_step = _kept(self._last_step_file)
        self._logged_before = int(last_step) if last_step.isdecimal() else 0
        id_file = own / "run-id.txt"
        run_id = _kept(id_file) or secrets.token_hex(4)
        own.mkdir(exist_ok=True)
        id_file.write_text(run_id, encoding="utf-8")
        try:
            self._run = wandb.init(
                project=None if "WANDB_PROJECT" in os.environ else "lstm_jax",
                name=run_dir.resolve().name,
                id=run_id,
                resume="allow",
                dir=str(run_dir),
                config=config,
                # Printed output is already in the rows, or meant for the user at the terminal.
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise ValueError(_cure(error)) from None
        # wandb's own step count cannot go back, but a resumed run does.
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def require() -> None:
        """Raise ValueError, with the cure, if wandb is not installed or not logged in."""
        if importlib.util.find_spec("wandb") is None:
            raise ValueError("--wandb needs wandb; pip install 'lstm-jax[wandb]'")
        import wandb

        try:
            if wandb.setup().settings.mode in ("online", "shared"):
                wandb.login()
        except wandb.Error as error:
            raise ValueError(_cure(error)) from None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._run.finish(exit_code=0 if error is None else 1)

    def row(self, row: Row) -> None:
        """Log each number of the row, unless its step was logged before."""
        if row["step"] <= self._logged_before:
            return
        self._run.log(dict(row))
        self._last_step_file.write_text(str(row["step"]), encoding="utf-8")

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Log the sample as preformatted text, unless its step was logged before."""
        if step <= self._logged_before:
            return
        shown = self._as_html(f"<pre>{html.escape(text)}</pre>", inject=False)
        # The name becomes a path, and no prompt may lead out of the run's folder.
        self._run.log({"step": step, f"sample/{quote(prompt, safe=' ')}": shown})


Recorder = TensorBoardRecorder | WandbRecorder


class Recorded:
    """A report that also passes rows and samples to recorders.

    A recorder that fails, because of a full disk or a lost server, is not used again.
    """

    def __init__(self, report: Report, recorders: Sequence[Recorder]) -> None:
        self._report, self._recorders = report, list(recorders)
        self.advance, self.note = report.advance, report.note

    def row(self, row: Row) -> None:
        """Pass on a row of metrics."""
        self._record("row", row)
        self._report.row(row)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Pass on a sample."""
        self._record("sample", step, prompt, text)
        self._report.sample(step, prompt, text)

    def _record(self, what: str, *given: Any) -> None:
        for each in list(self._recorders):
            try:
                getattr(each, what)(*given)
            except Exception as error:  # third-party code may raise anything
                self._recorders.remove(each)
                self.note(
                    f"{type(each).__name__} failed ({one_line(error)}); training goes on without it"
                )


def _kept(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _cure(error: Exception) -> str:
    return f"--wandb: {error} To do without its server for now, set WANDB_MODE=offline"
