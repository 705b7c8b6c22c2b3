"""The servers of the search service, each with one contender's ubatch; one is under load at a time."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.server import Server

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
APPLICATION = Path(__file__).with_name("service_app")

BATCHED, UNBATCHED = "/search", "/search_unbatched"


@dataclass(frozen=True)
class Serving:
    """How a contender is served.

    Args:
        directory: where its ubatch lies.
        timeout: of the published ubatch, in seconds; `None` for this project, as it comes.
        path: the address that is asked.
    """

    directory: str
    timeout: float | None = None
    path: str = BATCHED

    def environment(self) -> dict[str, str]:
        """The variables of its server."""
        folders = [self.directory, os.fspath(APPLICATION), os.environ.get("PYTHONPATH", "")]
        found = {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "BENCHMARKED": self.directory}
        return found | ({} if self.timeout is None else {"SEARCH_TIMEOUT": repr(self.timeout)})


def find_example() -> None:
    """Make the example's package `search` importable."""
    if os.fspath(EXAMPLES) not in sys.path:
        sys.path.append(os.fspath(EXAMPLES))


class Servers:
    """The servers of one gunicorn worker class, started when they are first wanted.

    The worker process of all but the one under load is stopped, as the published ubatch polls even while it idles.
    Each of them must be wanted again within gunicorn's `timeout`, or it is taken for dead and replaced.

    Args:
        worker: gunicorn's worker class.
        limit: entries of the index; `None` for all.
    """

    def __init__(self, worker: str, limit: int | None) -> None:
        self.worker, self.limit = worker, limit
        self.stack = ExitStack()
        self.running: dict[tuple[str, float | None], Server] = {}
        self.processes: dict[Server, int] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self.running.values():
            self._signal(server, signal.SIGCONT)
        self.stack.close()

    @contextmanager
    def under_load(self, serving: Serving) -> Iterator[Server]:
        """The server of that contender, while all others stand still. One that fails is stopped.

        Raises:
            ServerError: it does not start, or has died.
        """
        from search.server import Server

        key = serving.directory, serving.timeout
        server = self.running.get(key)
        if server is None:
            server = Server(
                self.worker, limit=self.limit, application="service_wsgi:app", environment=serving.environment()
            )
            self.running[key] = self.stack.enter_context(server)
        try:
            self._signal(server, signal.SIGCONT)
            self.processes[server] = server.get("/stats")["pid"]
            yield server
            self._signal(server, signal.SIGSTOP)
        except BaseException:
            self.running.pop(key).stop()
            raise

    def _signal(self, server: Server, number: int) -> None:
        """To its worker process, once that is known."""
        with suppress(KeyError, ProcessLookupError):
            os.kill(self.processes[server], number)
