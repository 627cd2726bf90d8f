"""What ``prepare`` says on the terminal."""

from __future__ import annotations

import sys
from collections import Counter

from medseg.preparation.checks import Checks
from medseg.preparation.stage import PrepareReport

_MOST_ALIKE = 5


def show_checks(checks: Checks) -> None:
    """Writes all findings in one table, errors first; nothing if there are none. A warning that many cases share is one row.

    On a terminal the table is drawn, elsewhere each row is a line.
    """
    rows = _rows(checks)
    if not rows:
        return
    if not sys.stderr.isatty():
        sys.stderr.writelines(f"{severity}: {case_id}: {what}\n" for severity, case_id, what in rows)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("severity", "case", "what", title=f"{checks.case_count} cases checked")
    for severity, case_id, what in rows:
        style = "bold red" if severity == "error" else "yellow"
        table.add_row(f"[{style}]{severity}[/]", escape(case_id), escape(what))
    Console(stderr=True).print(table)


def _rows(checks: Checks) -> list[tuple[str, str, str]]:
    alike = Counter(f.what for f in checks.findings if f.severity == "warning")
    rows: list[tuple[str, str, str]] = []
    said: set[str] = set()
    for finding in sorted(checks.findings, key=lambda f: (f.severity != "error", f.case_id)):
        if finding.severity == "error" or alike[finding.what] <= _MOST_ALIKE:
            rows.append((finding.severity, finding.case_id, finding.what))
        elif finding.what not in said:
            said.add(finding.what)
            rows.append((finding.severity, f"{alike[finding.what]} cases", finding.what))
    return rows


def summary(report: PrepareReport) -> str:
    """A few lines: what was checked, the plan, what was written, what is missing."""
    checks, plan = report.checks, report.plan
    warnings = sum(f.severity == "warning" for f in checks.findings)
    lines = [
        f"checked {checks.case_count} cases ({report.read} read now): {len(checks.bad_cases)} bad, {warnings} warnings"
    ]
    if plan is not None:
        patch, spacing = ("x".join(f"{v:.4g}" for v in values) for values in (plan.patch_size_xyz, plan.spacing_xyz_mm))
        lines.append(
            f"plan: {plan.dimensions}D, {spacing} mm, patch {patch}, batch {plan.batch_size}; plan.yaml says why"
        )
        lines += [f"plan kept, the data have moved: {note}; --replan makes it anew" for note in report.drift]
        lines.append(f"prepared: {report.case_count} cases, {report.written} written now")
    lines += [f"not prepared: {case_id}: {reason}" for case_id, reason in report.failed.items()]
    return "\n".join(lines)
