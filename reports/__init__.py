"""The report of a run of slim.py: report.html for people and report.json with the same numbers."""

from reports.write import write_report

__all__ = ["write_report"]
