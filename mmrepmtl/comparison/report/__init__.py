"""``table.md``, ``table.tex`` and ``report.html`` of a comparison, from its results and the folders of its runs."""

from collections.abc import Sequence
from pathlib import Path

from mmrepmtl.comparison.report.gather import gather
from mmrepmtl.comparison.report.page import render
from mmrepmtl.comparison.report.published import published_lines
from mmrepmtl.comparison.results_file import Row
from mmrepmtl.comparison.tables import latex_table, markdown_table
from mmrepmtl.utils.files import whole_file

TABLE_MD, TABLE_TEX, REPORT = 'table.md', 'table.tex', 'report.html'


def write_reports(work_dir: Path, rows: Sequence[Row], pictures: bool = True) -> list[Path]:
    """Writes the tables and the report, each whole or not at all, also while runs are missing.

    Args:
        work_dir: The folder of the comparison. Where it holds no runs, the report says what of it is not there.
        rows: Of its results.
        pictures: Whether to draw predictions that were not drawn before, which loads each model once.

    Returns:
        The files: ``table.md``, ``table.tex`` and ``report.html``.

    Raises:
        ValueError: There is no row, or ``comparison.json`` is damaged.
        OSError: A file cannot be written.
    """
    work_dir = Path(work_dir)
    if not any(row.split == 'test' for row in rows):
        raise ValueError(f'{work_dir}: there is no result to report; run the comparison first')
    material = gather(work_dir, rows, pictures)
    texts = {
        TABLE_MD: markdown_table(material.summary, published_lines(material)),
        TABLE_TEX: latex_table(material.summary),
        REPORT: render(material),
    }
    for name, text in texts.items():
        with whole_file(work_dir / name) as file:
            file.write(text.encode())
    return [work_dir / name for name in texts]
