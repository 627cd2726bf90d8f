#!/usr/bin/env python3
"""kill -9 of a stage's whole process group at random moments, the same command again, and whether anything was lost.

    python tests/reliability/kill_stages.py --kills 10 --seed 7 --output benchmarks/results/kill_2026-01-31.md

Each kill starts from a fresh copy of what the stages before wrote. Of ten kills two fall into the first second, four
into a write (the n-th temporary file has just appeared), one while the tracker's sender runs, the others anywhere in the
run's time. ``--alone`` adds kills of the command's own process only: its workers and its sender must go by themselves.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import random
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

from tests.experiment import Experiment, write_experiment  # noqa: E402
from tests.reliability.stages import LOGS, STAGES, Stage, broken_files, run, start, temporaries  # noqa: E402
from tests.reliability.watching import Temporaries, end_marked, marked_processes, seconds_until_gone  # noqa: E402

_LOG = logging.getLogger("kill_stages")
KINDS = ("first second", "write", "any time", "sender", "alone")
_TEN = (
    "first second",
    "write",
    "any time",
    "write",
    "sender",
    "write",
    "any time",
    "first second",
    "write",
    "any time",
)
_GONE_SECONDS = 10.0
_MOST_SECONDS = 240.0


_HEADING = """# kill -9 of every stage, {date}

A kill takes the command's whole process group (kind *alone*: its own process only); then the same command runs to its end.
Equal hashes: store, plan and index; model folder; masks and sidecars; scores, each against an undisturbed run.
*sender* and *alone*: with MLflow's sender process running.

- command: `python tests/reliability/kill_stages.py {arguments}`, seed {seed}
- machine: {machine}, {cores} core(s) given
- versions: {packages}

"""


@dataclass(frozen=True)
class Undisturbed:
    """What a stage did when nobody disturbed it.

    Attributes:
        before: work folder as the stages before left it.
        hashes: of the files that must be equal.
        writes: temporary files that appeared.
        seconds: from start to end.
    """

    before: Path
    hashes: dict[str, str]
    writes: int
    seconds: float


@dataclass(frozen=True)
class Kill:
    """One kill and what came after; every list and number but ``moment`` and ``gone_seconds`` should be empty or 0.

    Attributes:
        kind: one of ``KINDS``.
        moment: in words.
        in_write: whether a temporary file was there afterwards.
        broken: files under a final name that are partial.
        different: files that differ from the undisturbed run's after the second start.
        again: what the second start did besides what was missing.
        left_over: temporary files after the second start.
        orphans: command lines of the processes alive ten seconds after the kill.
        gone_seconds: until the last process was gone.
    """

    kind: str
    moment: str
    in_write: bool
    broken: tuple[str, ...]
    different: tuple[str, ...]
    again: str
    left_over: tuple[str, ...]
    orphans: tuple[str, ...]
    gone_seconds: float

    @property
    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong, one line each."""
        lists = {
            "partial": self.broken,
            "different": self.different,
            "left over": self.left_over,
            "orphan": self.orphans,
        }
        lines = [f"{what}: {name}" for what, names in lists.items() for name in names]
        return (*lines, self.again) if self.again else tuple(lines)


def undisturbed_runs(made: Experiment, folder: Path, names: Sequence[str]) -> Iterator[tuple[Stage, Undisturbed]]:
    """Runs the stages one after the other and keeps what each found and left; stops after the last of ``names``."""
    work = made.work
    work.mkdir()
    for name, stage in STAGES.items():
        before = folder / f"before-{name}"
        shutil.copytree(work, before)
        began, writes, marker = time.monotonic(), 0, secrets.token_hex(8)
        output = folder / f"{name}.out"
        with Temporaries(work, leave_out=LOGS) as seen:
            process = start(stage, made, work, marker=marker, tracked=False, output=output)
            while process.poll() is None:
                assert time.monotonic() - began < _MOST_SECONDS, f"{name} takes too long:\n{output.read_text()}"
                writes += seen.wait(0.1)
        assert process.returncode == 0, output.read_text()
        assert stage.counted(output.read_text()) == stage.expected(before, made), output.read_text()
        seconds, hashes = time.monotonic() - began, stage.hashes(work)
        assert not broken_files(stage, work, hashes)
        if name in names:
            yield stage, Undisturbed(before, hashes, writes, seconds)
        if name == names[-1]:
            return


def kill_and_start_again(
    stage: Stage, made: Experiment, known: Undisturbed, folder: Path, kind: str, rng: random.Random
) -> Kill:
    """Kills one run of a stage on a fresh copy, starts the same command again, and compares."""
    for _ in range(5):
        work, marker = folder / f"{stage.name}-{secrets.token_hex(4)}", secrets.token_hex(8)
        shutil.copytree(known.before, work)
        moment = _killed(stage, made, known, work, marker, kind, rng)
        if moment is not None:
            break
    else:
        raise AssertionError(f"{stage.name}: ended before every moment of kind {kind!r}")
    gone = seconds_until_gone(marker, at_most=_GONE_SECONDS)
    orphans = tuple(end_marked(marker)) if gone is None else ()
    in_write, broken = bool(temporaries(work)), broken_files(stage, work, known.hashes)
    expected = stage.expected(work, made)
    said = run(stage, made, work, marker=marker, tracked=kind in ("sender", "alone"))
    counted, after = stage.counted(said), stage.hashes(work)
    different = [name for name in sorted(known.hashes.keys() | after) if known.hashes.get(name) != after.get(name)]
    result = Kill(
        kind=kind,
        moment=moment,
        in_write=in_write,
        broken=tuple(broken),
        different=tuple(different),
        again="" if counted == expected else f"did {counted}, expected {expected}",
        left_over=tuple(temporaries(work)),
        orphans=orphans,
        gone_seconds=_GONE_SECONDS if gone is None else gone,
    )
    if not result.faults:
        shutil.rmtree(work)
        work.with_name(f"{work.name}.out").unlink()
    return result


def _killed(
    stage: Stage, made: Experiment, known: Undisturbed, work: Path, marker: str, kind: str, rng: random.Random
) -> str | None:
    """Starts the command and kills it; when, in words, or None if it had ended by itself."""
    tracked = kind in ("sender", "alone")
    write, delay = rng.randint(1, max(1, known.writes)), rng.choice((0.0, rng.uniform(0, 0.004)))
    moment = rng.uniform(0, 1) if kind == "first second" else rng.uniform(1, max(1.5, known.seconds))
    later = rng.uniform(0, 3)
    with Temporaries(work, leave_out=LOGS) as seen:
        began = time.monotonic()
        process = start(stage, made, work, marker=marker, tracked=tracked, output=work.with_name(f"{work.name}.out"))

        def is_time() -> bool:
            if kind == "write":
                return _count(seen, write, process.poll)
            if tracked:
                return _sender_runs(marker, process.poll) and not time.sleep(later)
            time.sleep(max(0.0, moment - (time.monotonic() - began)))
            return True

        if is_time():
            time.sleep(delay if kind == "write" else 0)
            seconds = time.monotonic() - began
            if process.poll() is None:
                (os.kill if kind == "alone" else os.killpg)(process.pid, signal.SIGKILL)
                process.wait()
                return f"{seconds:.2f} s" + (f", write {write} of {known.writes}" if kind == "write" else "")
    process.wait()
    return None


def _count(seen: Temporaries, wanted: int, ended: Callable[[], int | None]) -> bool:
    count = 0
    while count < wanted:
        if ended() is not None:
            return False
        count += seen.wait(0.1)
    return True


def _sender_runs(marker: str, ended: Callable[[], int | None]) -> bool:
    while not marked_processes(marker, running="medseg.tracking.sender"):
        if ended() is not None:
            return False
        time.sleep(0.05)
    return True


def table(results: dict[str, list[Kill]]) -> str:
    """A line per stage, then a line per kill."""
    columns = ("kills", "moments", "inside a write", "partial files", "equal hashes", "did finished work again")
    columns = ("stage", *columns, "temporaries left over", "orphans after 10 s", "last process gone after")
    lines = [f"| {' | '.join(columns)} |", f"| --- | --: | --- {'| --: ' * (len(columns) - 3)}|"]
    for name, kills in results.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(kill.kind for kill in kills).items())
        numbers = (
            sum(k.in_write for k in kills),
            sum(len(k.broken) for k in kills),
            f"{sum(not k.different for k in kills)} of {len(kills)}",
            sum(bool(k.again) for k in kills),
            sum(len(k.left_over) for k in kills),
            sum(len(k.orphans) for k in kills),
            f"{max(k.gone_seconds for k in kills):.1f} s",
        )
        lines.append(f"| {name} | {len(kills)} | {kinds} | {' | '.join(map(str, numbers))} |")
    lines += ["", "| stage | kind | killed after | inside a write | processes gone after | faults |"]
    lines += ["| --- | --- | --- | --- | --: | --- |"]
    lines += [
        f"| {name} | {k.kind} | {k.moment} | {'yes' if k.in_write else 'no'} | {k.gone_seconds:.2f} s | {'; '.join(k.faults)} |"
        for name, kills in results.items()
        for k in kills
    ]
    return "\n".join(lines) + "\n"


def _heading(arguments: Sequence[str], seed: int) -> str:
    from medseg.tracking.record import versions

    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return _HEADING.format(
        date=time.strftime("%Y-%m-%d"),
        arguments=shlex.join(arguments),
        seed=seed,
        machine=f"{platform.system()} {platform.machine()}, {processor[1] if processor else 'unknown processor'}",
        cores=len(os.sched_getaffinity(0)),
        packages=packages,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Does the kills and prints the table; 1 if anything was lost."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of the process group, per stage [10]")
    parser.add_argument("--alone", type=int, default=1, help="of the command's own process, per stage [1]")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=list(STAGES))
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    _LOG.info("seed %d", args.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-stages-"))
    made = write_experiment(folder)
    results: dict[str, list[Kill]] = {}
    for stage, known in undisturbed_runs(made, folder, args.stages):
        rng = random.Random(f"{args.seed} {stage.name}")
        sizes = stage.name, known.seconds, known.writes, len(known.hashes)
        _LOG.info("%s: undisturbed %.1f s, %d writes, %d files to be equal", *sizes)
        kinds = [*(_TEN[i % len(_TEN)] for i in range(args.kills)), *["alone"] * args.alone]
        results[stage.name] = []
        for kind in kinds:
            kill = kill_and_start_again(stage, made, known, folder, kind, rng)
            results[stage.name].append(kill)
            _LOG.info("%s: %s, %s: %s", stage.name, kind, kill.moment, "; ".join(kill.faults) or "nothing lost")
        text = _heading(arguments, args.seed) + table(results)
        if args.output:
            args.output.write_text(text)
    sys.stdout.write(text)
    faults = any(kill.faults for kills in results.values() for kill in kills)
    if faults:
        _LOG.info("what went wrong lies in %s", folder)
    else:
        shutil.rmtree(folder)
    return int(faults)


if __name__ == "__main__":
    sys.exit(main())
