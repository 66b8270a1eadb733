"""What a study leaves beside its runs: ``OUT/alpha.md``, ``.csv`` and ``.html``, and each figure as SVG and PNG."""

import json
from pathlib import Path

from unike.core.errors import UnikeError
from unike.core.files import replace_file
from unike.report import STUDY_FILE, StudyFigures, rows_to_csv, to_csv, to_html, to_markdown
from unike.studies.base import Findings, Study
from unike.studies.lab import Lab


def conduct(study: Study, lab: Lab) -> tuple[Findings, list[Path]]:
    """Conduct a study, or go on with it, and write what it found.

    Returns:
        What was found, and the files that say it.

    Raises:
        UnikeError: Bad input, known before a model is loaded; or what a run cannot do.
    """
    study.check(lab)
    findings = study.conduct(lab)
    return findings, write(study, lab, findings)


def write(study: Study, lab: Lab, findings: Findings) -> list[Path]:
    """Tables as Markdown and CSV, figures as SVG and PNG, a page with all of it, and a list of figures for reports."""
    measurements, tables, name = findings.measurements, findings.tables, study.name
    files: dict[str, bytes] = {}
    for number, drawing in enumerate(findings.drawings):
        lab.progress("drawing figures", number, len(findings.drawings))
        files |= drawing.files()
    lab.progress("drawing figures", len(findings.drawings), len(findings.drawings))
    captions = {f"{drawing.name}.svg": drawing.caption for drawing in findings.drawings}
    figures = StudyFigures(study.title, [(caption, files[file].decode()) for file, caption in captions.items()])
    texts = {
        f"{name}.md": to_markdown(measurements, tables, title=study.title, preface=study.asks, figures=captions),
        f"{name}.csv": rows_to_csv(findings.numbers) if findings.numbers else to_csv(measurements),
        f"{name}.html": to_html(
            measurements, tables, None, studies=[figures], chosen=findings.cases, data=lab.request.data, details=False
        ),
        f"{name}{STUDY_FILE}": json.dumps({"title": study.title, "figures": captions}, indent=2) + "\n",
    }
    files |= {file: text.encode(errors="replace") for file, text in texts.items()}  # JSON can name half a character
    try:
        lab.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnikeError(f"cannot write {lab.out}: {error.strerror}; choose another folder") from None
    for file, content in files.items():
        replace_file(lab.out / file, content)
    return [lab.out / file for file in sorted(files)]
