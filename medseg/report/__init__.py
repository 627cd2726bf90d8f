"""The report of a set of scores: one HTML file that opens from disk, and the same in Markdown. docs/report.md describes it."""
