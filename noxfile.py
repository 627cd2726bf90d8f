#!/usr/bin/env python3
"""Checks of the project: ``nox`` runs lint, types and tests. Every session reuses the environment nox itself runs in."""

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "none"

PYTHON = sys.executable


@nox.session
def lint(session: nox.Session) -> None:
    """Style and faults that can be seen without running anything."""
    session.run(PYTHON, "-m", "ruff", "check", *session.posargs)
    session.run(PYTHON, "-m", "ruff", "format", "--check", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on medseg and pipelines."""
    session.run(PYTHON, "-m", "mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The fast suite, in two processes: what it waits for (other processes, the disk) is a good part of it."""
    session.run(PYTHON, "-m", "pytest", "-m", "not slow", "-n", "2", "--durations=10", *session.posargs)


@nox.session(default=False)
def smoke(session: nox.Session) -> None:
    """What the fast suite leaves out: the four stages end to end, kills, real scans."""
    session.run(PYTHON, "-m", "pytest", "-m", "slow", "--durations=10", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Every benchmark, one after the other, or those named: ``nox -s bench -- bench_store.py``."""
    folder = Path("benchmarks")
    for script in [folder / name for name in session.posargs] or sorted(folder.glob("bench_*.py")):
        session.run(PYTHON, str(script))


if __name__ == "__main__":
    nox.main()
