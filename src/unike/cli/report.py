"""``unike report``: what runs of ``unike bench`` measured, as tables, a page, or numbers for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from unike.cli import _shared as shared
from unike.core.errors import UnikeError

ORDER = 70

FORMATS = ("md", "html", "csv")


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders of runs (`unike bench --out`), or above them.")
    ],
    format: Annotated[str, typer.Option("--format", help="md, html or csv.")] = "md",
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="stdout; report.html for html")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="strict, teacher_forced or mmedit; repeatable.", show_default="all that were measured"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data set's files, for pictures.", show_default="in the cache folder"),
    ] = None,
    cases: Annotated[int, typer.Option(min=0, help="Failed cases to show, per kind of question and run (html).")] = 3,
    as_json: shared.Json = False,
) -> None:
    """Show what runs measured: tables in the layout of the paper, and where each number is from.

    Runs that differ in nothing but their seed are put together. Protocols, models and versions of the data are never
    mixed in one table. The html is one file, with figures and failed cases.
    """
    if format not in FORMATS:
        raise UnikeError(f"--format {format!r} is none of {', '.join(FORMATS)}")
    if data is not None and not data.is_dir():
        raise UnikeError(f"--data {data} is not a folder")
    if out is None and format == "html":
        out = Path("report.html")
    if out is not None:
        check_file(out)
    with shared.working("starting"):
        from unike import report as reports
        from unike.core import files
    with shared.progress_bars() as progress:
        measurements = reports.read(folders, progress=progress)
        views = reports.views_of(measurements, protocol)
        tables = reports.report_tables(measurements, views)
        if format == "csv":
            text = reports.to_csv(measurements, protocol)
        elif format == "md":
            text = reports.to_markdown(measurements, tables)
        else:
            view = views[0] if views else None
            studies = reports.find_studies(folders)
            text = reports.to_html(
                measurements, tables, view, count=cases, data=data, studies=studies, progress=progress
            )
    if out is not None:
        files.replace_file(out, text.encode(errors="replace"))  # JSON can name half a character
    if as_json:
        told = [
            {"method": m.method, "runs": [str(folder) for folder in m.runs], "done": m.done, "planned": m.planned}
            for m in measurements
        ]
        rows = [row for m in measurements for row in m.rows if protocol is None or row["protocol"] in protocol]
        shared.print_json({"out": out and str(out), "measurements": told, "summary": rows})
    else:
        typer.echo(text if out is None else f"report: {out}\n", nl=False)


def check_file(path: Path) -> None:
    """Refuse a file that could not be written, before anything slow.

    Raises:
        UnikeError: It is a folder, a device or the like, or its folder is not there.
    """
    from unike.core.files import check_replaceable

    if path.is_dir():
        raise UnikeError(f"{path} is a folder; give --out the name of a file")
    check_replaceable(path)
