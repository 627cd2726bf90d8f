"""Where training runs lie: ``<work>/runs/fold_0``, and after ``--fresh`` ``fold_0-2``, ``fold_0-3``, ..."""

from __future__ import annotations

from pathlib import Path


def run_name(fold: int | None) -> str:
    """``fold_<k>``, or ``all`` where no fold is held out."""
    return "all" if fold is None else f"fold_{fold}"


def latest_run(work: Path, fold: int | None) -> Path:
    """The newest run folder of a fold; where there is none, the first one's path."""
    return _numbered(work, fold)[-1][1]


def next_run(work: Path, fold: int | None) -> Path:
    """The run folder that ``--fresh`` starts; the first one where there is none yet."""
    number, latest = _numbered(work, fold)[-1]
    return latest if not latest.exists() else work / "runs" / f"{run_name(fold)}-{number + 1}"


def _numbered(work: Path, fold: int | None) -> list[tuple[int, Path]]:
    name = run_name(fold)
    found = [(1, work / "runs" / name)]
    for path in (work / "runs").glob(f"{name}-*"):
        number = path.name.removeprefix(f"{name}-")
        if number.isdigit():
            found.append((int(number), path))
    return sorted(found)
