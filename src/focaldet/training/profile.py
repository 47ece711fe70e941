"""Where the time of a training step goes, operation by operation, as torch's profiler measures it."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from focaldet.files import write_text

# Steps that are let pass, that warm the profiler up, and that are measured.
SKIPPED_STEPS, WARM_UP_STEPS, MEASURED_STEPS = 2, 1, 4

TABLE_ROWS, REPORTED_ROWS = 40, 3


class StepProfile:
    """A profile of a few steps near the beginning of a run, written as a table and as a trace.

    Attributes:
        table: the file of the table, by the time of each operation itself.
        trace: the file that chrome://tracing and ui.perfetto.dev draw.
        text: one line on the operations that take the most; None until the steps were measured.
        first_measured: the step, from 1, with which measuring begins; without it nothing is written.
    """

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        self.table, self.trace = folder / "profile.txt", folder / "profile.json"
        self.text: str | None = None
        self.first_measured, self._num_steps = SKIPPED_STEPS + WARM_UP_STEPS + 1, 0
        self._device = device
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        steps = schedule(wait=SKIPPED_STEPS, warmup=WARM_UP_STEPS, active=MEASURED_STEPS, repeat=1)
        self._profile: Any = profile(activities=activities, schedule=steps, on_trace_ready=self._write)
        self._profile.start()

    def count_step(self) -> str | None:
        """Take note of a step; after the last one that is measured, the line that says what took the most."""
        if self._profile is None:
            return None
        self._num_steps += 1
        self._profile.step()
        if self.text is not None:
            self.stop()
        return self.text

    def end(self) -> str | None:
        """Measure no more; the line on the profile, or on why there is none, where `count_step` gave none before."""
        if self.text is not None:
            return None
        self.stop()
        return self.text or f"profile: nothing was measured, as the run has fewer than {self.first_measured} steps"

    def stop(self) -> None:
        """Measure no more; a profile under way is written."""
        if self._profile is not None:
            self._profile.stop()
        self._profile = None

    def _write(self, measured: Any) -> None:
        if self._num_steps < self.first_measured:
            return
        kind = "cuda" if self._device.type == "cuda" else "cpu"
        rows = measured.key_averages()
        table = rows.table(sort_by=f"self_{kind}_time_total", row_limit=TABLE_ROWS, max_name_column_width=60)
        write_text(self.table, table)
        measured.export_chrome_trace(str(self.trace))
        seconds = {row.key: getattr(row, f"self_{'device' if kind == 'cuda' else 'cpu'}_time_total") for row in rows}
        total = sum(seconds.values()) or 1.0
        largest = sorted(seconds.items(), key=lambda row: row[1], reverse=True)[:REPORTED_ROWS]
        listed = ", ".join(f"{name.removeprefix('aten::')} {100 * spent / total:.0f} %" for name, spent in largest)
        self.text = f"profile: of a step {listed}; {self.table.name} has the rest, {self.trace.name} is the trace"
