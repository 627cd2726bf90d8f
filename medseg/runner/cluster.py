"""Cases over the workers of a Dask cluster: the pool's interface, on many machines.

Workers see the same files under the same paths as the command, which keeps lock, report and order; what goes over the network
is a case's paths and its outcome. A worker does one case at a time, with as many threads as it was given. A worker that dies
or falls silent loses its cases to the others; a case that takes several workers down is tried once more at the end and alone,
and then given up.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from medseg.durable import read_json
from medseg.errors import EnvironmentFault, MedsegError
from medseg.runner.cluster_worker import MARK, do_case, remove_silent_workers, versions
from medseg.runner.pool import Outcome, RunCases, outcome_of
from medseg.runner.worker import Reply

if TYPE_CHECKING:
    from distributed import Client, Future

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

GPU = "GPU"
_LOST_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_SAY_SECONDS = 30.0
_ASK_SECONDS = 30.0
_PER_THREAD = 2
"""Cases with a worker per case that it does: the next one is there when it ends one."""


@dataclass(eq=False)
class _Flight:
    """One case that is out."""

    case_id: str
    item: Any
    alone: bool = False
    since: float = field(default_factory=time.monotonic)


class Cluster:
    """A connection to Dask's scheduler; a context manager that closes it, and never the scheduler of others.

    Args:
        client: connected.
        lost_seconds: a worker that was not heard of for so long is taken for lost. Workers speak up every half second to a few
            seconds, also while they compute.
        owned: closed after the client: a cluster that was started for this command.
    """

    def __init__(self, client: Client, *, lost_seconds: float = _LOST_SECONDS, owned: Any = None) -> None:
        self._client, self._lost_seconds, self._owned = client, lost_seconds, owned
        self._answered: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        if self._owned is not None:
            self._owned.close()

    def has_gpus(self) -> bool:
        """Whether a worker has the resource GPU."""
        return any(worker.get("resources", {}).get(GPU, 0) >= 1 for worker in self._workers().values())

    def on(self, folder: Path) -> RunCases:
        """`run_cases` for a stage that writes ``folder``."""
        return partial(self.run_cases, folder=folder)

    def run_cases(
        self, task: Callable[[T], R], items: Sequence[tuple[str, T]], *, folder: Path, gpu: bool = False
    ) -> Iterator[Outcome[R]]:
        """As `medseg.runner.pool.run_cases`, on the cluster's workers; outcomes come as cases end.

        Closing the iterator early calls back the cases that were not begun.

        Args:
            task: a picklable function of an importable module, or a partial of one.
            items: pairs of case id and picklable value, whose paths are absolute.
            folder: that this command writes; it must be the same one for the workers.
            gpu: only on workers with the resource GPU, one case a GPU.

        Raises:
            EnvironmentFault: the scheduler is lost, or a worker can't see the folder or has another medseg.
        """
        self._refuse_strangers()
        mark = folder / f"{MARK}{secrets.token_hex(8)}"
        mark.touch()
        flights: dict[Future, _Flight] = {}
        waiting = deque(_Flight(case_id, item) for case_id, item in items)
        try:
            yield from self._run(task, waiting, flights, mark, {GPU: 1} if gpu else None)
        except (OSError, TimeoutError) as error:
            raise EnvironmentFault("cluster: the scheduler is lost; start it again and run the same command") from error
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be what is lost
                self._client.cancel(list(flights), force=True)
            mark.unlink(missing_ok=True)

    def _run(
        self,
        task: Callable[[T], R],
        waiting: deque[_Flight],
        flights: dict[Future, _Flight],
        mark: Path,
        resources: dict[str, int] | None,
    ) -> Iterator[Outcome[R]]:
        again: deque[_Flight] = deque()
        watch = _Watch(self)
        while waiting or flights or again:
            room = _PER_THREAD * self._places(resources) - len(flights)
            while waiting and room > 0:
                self._submit(task, waiting.popleft(), flights, mark, resources)
                room -= 1
            if not waiting and not flights:
                self._submit(task, again.popleft(), flights, mark, resources)
            done = self._finished(flights)
            watch.look(idle=not self._places(resources), gpu=resources is not None)
            for future in done:
                flight = flights.pop(future)
                outcome = self._outcome(future, flight)
                if outcome is None:
                    flight.alone = True
                    again.append(flight)
                else:
                    yield outcome

    def _refuse_strangers(self) -> None:
        """Dask retries for ever what a machine can't unpickle, so it is asked beforehand."""
        ask = self._client._get_versions  # noqa: SLF001 - get_versions has no time limit, and a frozen worker never answers
        try:
            found = self._client.sync(ask, packages=["medseg"], callback_timeout=_ASK_SECONDS)
        except TimeoutError:
            return
        machines = {"the scheduler": found["scheduler"], **found["workers"]}
        for name, facts in machines.items():
            if (facts or {}).get("packages", {}).get("medseg") is None:
                who = name if name == "the scheduler" else "a worker"
                raise EnvironmentFault(f"cluster: {who} has no medseg, expected it installed there as here")

    def _submit(
        self,
        task: Callable[[T], R],
        flight: _Flight,
        flights: dict[Future, _Flight],
        mark: Path,
        resources: dict[str, int] | None,
    ) -> None:
        flight.since = time.monotonic()
        key = f"medseg-{flight.case_id}-{secrets.token_hex(4)}"
        level = logging.getLogger("medseg").getEffectiveLevel()
        future = self._client.submit(
            do_case,
            task,
            flight.item,
            mark=mark,
            expected=versions(),
            level=level,
            key=key,
            pure=False,
            resources=resources,
        )
        flights[future] = flight

    def _finished(self, flights: dict[Future, _Flight]) -> list[Future]:
        """Those that are done; waits a moment where none is."""
        from distributed import wait

        if not flights:
            time.sleep(_LOOK_SECONDS)
            return []
        with contextlib.suppress(TimeoutError), self._client.as_current():
            wait(list(flights), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
        done = [future for future in flights if future.done()]
        if any(future.cancelled() for future in done):
            raise EnvironmentFault("cluster: the scheduler is lost; start it again and run the same command")
        return done

    def _outcome(self, future: Future, flight: _Flight) -> Outcome[Any] | None:
        """What became of a case; None if its workers died and it is to be tried once more."""
        from distributed import KilledWorker

        seconds = time.monotonic() - flight.since
        error = future.exception()
        if error is None:
            address, reply = future.result()
            self._answered.add(address)
            return outcome_of(flight.case_id, reply, seconds)
        if isinstance(error, MedsegError):
            raise error
        if not isinstance(error, KilledWorker):
            _LOG.debug("%s: could not be run", flight.case_id, exc_info=error)
            raise EnvironmentFault(
                f"cluster: a worker can't run the cases ({type(error).__name__}), expected medseg installed there as here"
            ) from error
        if not flight.alone:
            _LOG.warning("%s: workers died with it; it is tried once more at the end, alone", flight.case_id)
            return None
        lost = "brought its workers down, also alone; give them more memory or look at the file"
        return outcome_of(flight.case_id, Reply("died", error=lost, exit_code=1), seconds)

    def _places(self, resources: dict[str, int] | None) -> int:
        """How many cases the workers do at once: one each, or one a GPU."""
        workers = self._workers().values()
        if resources is None:
            return len(workers)
        return sum(int(worker.get("resources", {}).get(GPU, 0)) for worker in workers)

    def _workers(self) -> dict[str, dict[str, Any]]:
        return dict(self._client.scheduler_info()["workers"])

    def remove_silent(self) -> None:
        """Has the scheduler give the cases of workers that fell silent to others."""
        for name in self._client.run_on_scheduler(remove_silent_workers, self._lost_seconds, sorted(self._answered)):
            _LOG.warning(
                "cluster: worker %s fell silent for %.0f s; others take over its cases", name, self._lost_seconds
            )


class _Watch:
    """Looks after the workers now and then."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._looked = self._said = time.monotonic()

    def look(self, *, idle: bool, gpu: bool) -> None:
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._cluster.remove_silent()
        if idle and now - self._said >= _SAY_SECONDS:
            self._said = now
            _LOG.info("cluster: waits for a worker%s", " with the resource GPU" if gpu else "")


def connect(address: str, *, workers: int | None = None, lost_seconds: float = _LOST_SECONDS) -> Cluster:
    """A cluster by its address.

    Args:
        address: of a scheduler (``tcp://host:8786``; ``tls://host:8786`` with the certificates that Dask's own config names),
            the JSON file that it wrote, or ``slurm``, which starts workers as SLURM jobs by the settings of Dask's own config.
        workers: SLURM jobs.
        lost_seconds: see :class:`Cluster`.

    Raises:
        EnvironmentFault: Dask is not installed, or nobody answers.
    """
    if address.endswith(".json") and not Path(address).is_file():  # Dask would wait for it for ever
        raise EnvironmentFault(
            f"--cluster: {Path(address).name} is not there; start 'dask scheduler --scheduler-file' first"
        )
    try:
        from distributed import Client
    except ImportError as error:
        raise EnvironmentFault("--cluster: lacks dask.distributed; pip install medseg[cluster]") from error
    _refuse_without_certificates(address)
    owned = None
    try:
        if address == "slurm":
            owned = _slurm(workers or 1)
            client = Client(owned, set_as_default=False)
        elif address.endswith(".json"):
            client = Client(scheduler_file=address, set_as_default=False, timeout=30)
        else:
            client = Client(address, set_as_default=False, timeout=30)
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        if owned is not None:
            owned.close()
        raise EnvironmentFault(
            f"--cluster: {address} can't be reached ({type(error).__name__}); start 'dask scheduler' there, or correct it"
        ) from error
    return Cluster(client, lost_seconds=lost_seconds, owned=owned)


def _refuse_without_certificates(address: str) -> None:
    """Before Dask connects: its client without certificates ends in a TypeError, and takes a minute to be thrown away."""
    from distributed.security import Security

    if address.endswith(".json"):
        address = str(read_json(Path(address)).get("address", ""))
    if address.startswith("tls://") and Security().get_connection_args("client").get("ssl_context") is None:
        raise EnvironmentFault(
            "--cluster: a tls:// scheduler was named and Dask's config has no certificates for it, expected ca-file and "
            "client.cert, client.key under distributed.comm.tls; see docs/cluster.md"
        )


def _slurm(workers: int) -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise EnvironmentFault("--cluster slurm: lacks dask-jobqueue; pip install medseg[cluster]") from error
    # One process a job: one model a worker. No dashboard: nothing listens but the scheduler.
    cluster = SLURMCluster(processes=1, scheduler_options={"dashboard": False, "dashboard_address": None})
    cluster.scale(jobs=workers)
    return cluster
