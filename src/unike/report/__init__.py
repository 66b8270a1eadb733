"""Reports of benchmark runs: tables in the layout of the paper, figures, and a page; from the results' lines alone."""

from unike.report.blocks import Block, Entry, arrange, views_of
from unike.report.cells import Table
from unike.report.measurements import Measurement, check_shared, measure, named, read
from unike.report.page import Chosen, to_html
from unike.report.study_figures import STUDY_FILE, StudyFigures, find_studies
from unike.report.tables import gap_tables, report_tables, score_table, summary_tables
from unike.report.text import rows_to_csv, to_csv, to_markdown

__all__ = [
    "STUDY_FILE",
    "Block",
    "Chosen",
    "Entry",
    "Measurement",
    "StudyFigures",
    "Table",
    "arrange",
    "check_shared",
    "find_studies",
    "gap_tables",
    "measure",
    "named",
    "read",
    "report_tables",
    "rows_to_csv",
    "score_table",
    "summary_tables",
    "to_csv",
    "to_html",
    "to_markdown",
    "views_of",
]
