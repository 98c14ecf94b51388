"""What a running suite shows: a live view in a terminal, a few plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmark.cli import say
from benchmark.escape import plain
from benchmark.workers.executors import Event


class RunView:
    """Shows events of a run. titles: of the cells, by number; done_before: cells that had a record already."""

    def __init__(self, console: Console, titles: Sequence[str]) -> None:
        self.console, self.titles = console, [plain(title) for title in titles]
        self.finished = 0
        self.live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not self.live,
        )
        self._total: TaskID | None = None
        self._bars: dict[int, TaskID] = {}

    def __enter__(self) -> RunView:
        self._progress.start()
        if self.live:
            self._total = self._progress.add_task("cells", total=len(self.titles))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """React to one event."""
        if event.kind == "finished":
            self._finish(event)
        elif event.kind == "note":
            say(self.console, f"Note: {event.message}")
        elif self.live:
            self._advance(event)

    def _advance(self, event: Event) -> None:
        bar = self._bars.get(event.worker)
        if bar is None:
            bar = self._bars[event.worker] = self._progress.add_task("", total=None)
        description = f"{self.titles[event.cell]} · {event.stage}" if event.stage else self.titles[event.cell]
        if event.kind == "started":
            self._progress.reset(bar, total=None, description=description)
        else:
            self._progress.update(bar, total=event.steps, completed=event.done, description=description)

    def _finish(self, event: Event) -> None:
        self.finished += 1
        if self.live and self._total is not None:
            self._progress.update(self._total, completed=self.finished)
            if event.worker in self._bars:
                self._progress.remove_task(self._bars.pop(event.worker))
        reason = f": {event.message}" if event.message else ""
        line = (
            f"[{self.finished}/{len(self.titles)}] {self.titles[event.cell]}: {event.status} in {event.seconds:.1f} s"
        )
        say(self.console, line + reason)
