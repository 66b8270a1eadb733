"""Reports of benchmark runs: tables in the layout of the paper, figures, and a page; from the results' lines alone."""

from unike.report.measurements import Measurement, measure, named, read
from unike.report.page import to_html
from unike.report.tables import (
    Block,
    Entry,
    Table,
    arrange,
    gap_tables,
    report_tables,
    score_table,
    summary_tables,
    views_of,
)
from unike.report.text import to_csv, to_markdown

__all__ = [
    "Block",
    "Entry",
    "Measurement",
    "Table",
    "arrange",
    "gap_tables",
    "measure",
    "named",
    "read",
    "report_tables",
    "score_table",
    "summary_tables",
    "to_csv",
    "to_html",
    "to_markdown",
    "views_of",
]
