#!/usr/bin/env python3
"""PostgreSQL and an MLflow server on loopback: five folds log at once, the server is killed in the middle, and nothing is lost.

    python tests/reliability/tracking_server.py --driver FOLDER --output benchmarks/results/tracking_2026-01-31.md

Two rounds: *together*, five folds of one work folder (``medseg train --fold all --parallel 5``, one sender at a time, then the
cross-validation), and *apart*, each fold with a work folder of its own and so five senders at once. In each the server gets
``kill -9`` when all five have logged, stays away while they train on, and starts again; ``medseg sync`` then sends the rest,
and every metric point, parameter, tag, table, file and registered version is compared with the spools.

It needs Debian's ``postgresql`` and psycopg2, which the server alone uses: ``pip install --target FOLDER psycopg2-binary``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

from medseg.tracking.record import versions  # noqa: E402
from medseg.tracking.spool import read_records, spool_folders  # noqa: E402
from tests.experiment import Experiment, write_experiment  # noqa: E402
from tests.reliability.sent import Found, compare  # noqa: E402

_LOG = logging.getLogger("tracking_server")
FOLDS = 5
_STEPS = 200
_USER = "postgres"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
_MOST_SECONDS = 900.0
_TITLES = {
    "metrics while the server was away": "training went on while the server was away",
    "metrics without a point too many": "metrics without a point too many",
    "syncs": "`medseg sync` ended well",
    "trainings": "commands that trained and ended well",
}


def postgres_programs() -> Path | None:
    """Folder of ``initdb`` and ``pg_ctl``, of the newest version that Debian's packages left; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A private cluster below ``folder``; its address. initdb refuses root, so as root the user ``postgres`` runs it."""
    programs = postgres_programs()
    assert programs is not None, "PostgreSQL is not installed: apt-get install postgresql"
    port, cluster = _free_port(), folder / "cluster"
    cluster.mkdir()
    as_user: list[str] = []
    if os.getuid() == 0:
        as_user = ["runuser", "-u", _USER, "--"]
        shutil.chown(cluster, _USER, _USER)
        for place in (folder, *folder.parents[:-1]):
            if place != Path("/tmp"):
                place.chmod(place.stat().st_mode | 0o011)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {cluster}"

    def run(*command: str | Path) -> None:
        subprocess.run([*as_user, *map(str, command)], check=True, capture_output=True, cwd="/")

    run(programs / "initdb", "-D", cluster / "data", "-U", _USER, "--auth=trust", "--no-sync")
    run(programs / "pg_ctl", "-D", cluster / "data", "-o", options, "-l", cluster / "log", "-w", "start")
    try:
        run(programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", _USER, "mlflow")
        yield f"postgresql+psycopg2://{_USER}@127.0.0.1:{port}/mlflow"
    finally:
        run(programs / "pg_ctl", "-D", cluster / "data", "-m", "immediate", "stop")


@dataclass
class Server:
    """An MLflow server that can be killed and started again at the same address."""

    database: str
    folder: Path
    driver: Path | None
    port: int = field(default_factory=_free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        paths = [str(self.driver)] if self.driver else []
        environment = os.environ | _QUIET | {"PYTHONPATH": os.pathsep.join([*paths, str(_ROOT)])}
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.5)
        raise RuntimeError(f"the server did not start; see {self.folder / 'server.log'}")

    def kill(self) -> None:
        """``kill -9`` of the server and its worker."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Round:
    """What one round found."""

    name: str
    sent_before: int = 0
    logged_while_away: int = 0
    away_seconds: float = 0.0
    waited: int = 0
    exit_codes: list[int] = field(default_factory=list)
    found: Found = field(default_factory=Found)


def one_thread_environment() -> dict[str, str]:
    """Of a medseg command with tracking to its own work folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(_ROOT)}
    for name in ("MEDSEG_TRACKING", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    return environment


def _environment(server: Server) -> dict[str, str]:
    return one_thread_environment() | {"MLFLOW_TRACKING_URI": server.uri}


def _medseg(made: Experiment, work: Path, server: Server, verb: str, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medseg.cli.main", verb, *made.flags(work), *flags]
    with work.with_name(f"{work.name}-{verb}.out").open("ab") as said:
        return subprocess.Popen(command, env=_environment(server), stdout=said, stderr=said, start_new_session=True)


def _metric_times(works: Sequence[Path]) -> list[int]:
    """When each training metric was logged, in ms, of all folds; system metrics are the sender's."""
    return [
        int(record.fields["ms"])
        for work in works
        for folder in spool_folders(work / "tracking")
        if folder.name.startswith("train-")
        for record in read_records(folder)
        if record.kind == "metrics" and "train/loss" in record.fields["values"]
    ]


def _folds_begun(works: Sequence[Path]) -> int:
    return sum(
        any("train/loss" in r.fields.get("values", {}) for r in read_records(folder))
        for work in works
        for folder in spool_folders(work / "tracking")
        if folder.name.startswith("train-")
    )


def _stored_points(uri: str) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return sum("train/loss" in run.data.metrics for run in client.search_runs(experiments))


def run_round(name: str, works: Sequence[Path], made: Experiment, server: Server, away_seconds: float) -> Round:
    """Starts the folds, kills the server when all of them have logged and it has some of that, and compares at the end."""
    result = Round(name)
    settings = ("--set", f"tracking.registered_model={name}", "--set", f"train.budget.steps={_STEPS}")
    if len(works) == 1:
        flags = [("--fold", "all", "--parallel", str(FOLDS), *settings)]
    else:
        flags = [("--set", f"data.fold={fold}", *settings) for fold in range(FOLDS)]
    processes = [_medseg(made, work, server, "train", *flags[k]) for k, work in enumerate(works)]
    deadline = time.monotonic() + _MOST_SECONDS
    while _folds_begun(works) < FOLDS or not result.sent_before:
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            result.found.faults.append("a fold ended before the server was killed; give more steps")
            break
        time.sleep(0.2)
        result.sent_before = _stored_points(server.uri)
    killed = time.time_ns() // 1_000_000
    server.kill()
    _LOG.info("%s: the server is killed", name)
    time.sleep(away_seconds)
    back = time.time_ns() // 1_000_000
    result.logged_while_away = sum(killed < ms < back for ms in _metric_times(works))
    server.start()
    result.away_seconds = time.time() - killed / 1000
    _LOG.info("%s: the server is back; %d points were logged meanwhile", name, result.logged_while_away)
    result.exit_codes = [process.wait(_MOST_SECONDS) for process in processes]
    for work in works:
        code = _medseg(made, work, server, "sync").wait(_MOST_SECONDS)
        result.found.expect("syncs", f"{work.name} ended in {code}", there=code == 0)
    for code in result.exit_codes:
        result.found.expect("trainings", f"one ended in {code}", there=code == 0)
    result.found.expect("metrics while the server was away", "none", there=result.logged_while_away > 0)
    for work in works:
        one = compare(server.uri, work, work.with_name(f"{work.name}-artifacts"))
        result.found.counts += one.counts
        result.found.faults += one.faults
    return result


def prepared_works(made: Experiment, folder: Path, server: Server) -> dict[str, list[Path]]:
    """Work folders with prepared data for both rounds."""
    first = folder / "together"
    first.mkdir()
    assert _medseg(made, first, server, "prepare").wait(_MOST_SECONDS) == 0
    apart = [folder / f"apart_{fold}" for fold in range(FOLDS)]
    for work in apart:
        shutil.copytree(first / "prepared", work / "prepared")
    return {"together": [first], "apart": apart}


def table(rounds: Sequence[Round]) -> str:
    """The figures as Markdown."""
    kinds = sorted({kind for one in rounds for kind in one.found.counts})
    lines = ["| | " + " | ".join(one.name for one in rounds) + " |", "| --- |" + " --: |" * len(rounds)]
    rows = {
        "trainings with points in the store at the kill": [one.sent_before for one in rounds],
        "server away, s": [f"{one.away_seconds:.0f}" for one in rounds],
        "metric records logged meanwhile": [one.logged_while_away for one in rounds],
        **{_TITLES.get(kind, f"{kind} as in the spools"): [one.found.counts[kind] for one in rounds] for kind in kinds},
        "faults": [len(one.found.faults) for one in rounds],
    }
    lines += [f"| {name} | " + " | ".join(map(str, values)) + " |" for name, values in rows.items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Does both rounds and prints the table; 1 if anything was lost."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", type=Path, help="folder with psycopg2 [this environment's own]")
    parser.add_argument(
        "--away", type=float, default=20.0, metavar="SECONDS", help="before the server is started again [20]"
    )
    parser.add_argument("--rounds", nargs="+", choices=("together", "apart"), default=["together", "apart"])
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    os.environ |= _QUIET
    folder = Path(tempfile.mkdtemp(prefix="tracking-server-"))
    made = write_experiment(folder, training=10, folds=FOLDS, steps=_STEPS)
    rounds = []
    with postgres(folder) as database:
        server = Server(database, folder, args.driver)
        server.start()
        try:
            works = prepared_works(made, folder, server)
            rounds = [run_round(name, works[name], made, server, args.away) for name in args.rounds]
        finally:
            server.kill()
    faults = [f"{one.name}: {fault}" for one in rounds for fault in one.found.faults]
    shown = [Path(argument).name for argument in arguments]
    heading = (
        f"# An MLflow server on PostgreSQL, killed while five folds log, {time.strftime('%Y-%m-%d')}\n\n"
        f"- command: `python tests/reliability/tracking_server.py {' '.join(shown)}`\n"
        f"- machine: {platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} core(s) given\n"
        f"- versions: {', '.join(f'{name} {number}' for name, number in versions().items())}\n\n"
    )
    text = heading + table(rounds) + "\nfaults: " + ("; ".join(faults) or "none") + "\n"
    if args.output:
        args.output.write_text(text)
    sys.stdout.write(text)
    if faults:
        _LOG.info("what went wrong lies in %s", folder)
    else:
        shutil.rmtree(folder)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
