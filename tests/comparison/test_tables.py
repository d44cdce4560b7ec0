"""table.md and table.tex: the numbers in their cells, places, what is missing, and labels that would break out."""

import re
import statistics

import pytest

from mmrepmtl.comparison.summary import summarize
from mmrepmtl.comparison.tables import PRELIMINARY, cells_of, columns_of, definitions, latex_table, markdown_table
from tests.comparison.numbers import make_row, make_rows


def read_markdown(text: str) -> dict[str, dict[str, str]]:
    """{method: {column: cell}} of the first table."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    head, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in lines)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def plain(cell: str) -> str:
    return re.sub(r'\*\*|</?u>', '', cell)


def test_cells_hold_mean_and_deviation_and_the_columns_their_direction():
    rows = make_rows()
    table = read_markdown(markdown_table(summarize(rows)))
    values = [row.value for row in rows if (row.label, row.metric) == ('cagrad', 'semseg/mIoU')]
    assert plain(table['cagrad']['semseg/mIoU ↑']) == f'{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}'
    values = [row.value for row in rows if (row.label, row.metric) == ('uw', 'depth/rel_err')]
    cell = plain(table['uw'][r'depth/rel\_err ↓'])
    assert cell == f'{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}'
    deltas = list(summarize(rows).methods['uw'].delta_task.values())
    assert plain(table['uw']['Delta p, tasks ↑']) == f'{statistics.fmean(deltas):+.2f} ± {statistics.stdev(deltas):.2f}'
    assert table['stl']['Delta p, tasks ↑'] == '0' and table['constant']['Delta p, metrics ↑'] == '-'
    assert table['uw']['seeds'] == '3' and table['constant']['seeds'] == '-'
    assert '±' not in table['constant']['semseg/mIoU ↑']


def test_best_is_bold_and_second_underlined_among_the_methods():
    rows = make_rows()
    summary = summarize(rows)
    cells, columns = cells_of(summary), columns_of(summary)
    for number, column in enumerate(columns):
        if column.higher is None:
            continue
        ranked = sorted(summary.competitors, key=lambda label: cells[label][number].value, reverse=column.higher)
        assert [cells[label][number].place for label in ranked] == [1, 2, 0, 0, 0, 0]
        assert cells['stl'][number].place == cells['constant'][number].place == 0
    table = read_markdown(markdown_table(summary))
    best = max(summary.competitors, key=lambda label: summary.methods[label].metrics['semseg/mIoU'].mean)
    assert table[best]['semseg/mIoU ↑'].startswith('**')


def test_equal_methods_share_a_place_and_a_method_alone_has_none():
    rows = make_rows({'stl': 0, 'ew': 20, 'uw': 0}, seeds=(0,))
    rows += [make_row('twin', 0, row.metric, row.value) for row in rows if row.label == 'ew']
    cells = cells_of(summarize(rows))
    assert [own[0].place for label, own in cells.items() if label in ('ew', 'twin')] == [1, 1]
    rows = [row for row in rows if row.label in ('stl', 'ew', 'twin')]
    assert {cell.place for label, own in cells_of(summarize(rows)).items() for cell in own} == {0}
    alone = cells_of(summarize(make_rows({'stl': 0, 'ew': 1})))
    assert {cell.place for cell in alone['ew']} == {0}


def test_a_mean_without_a_seed_says_so_and_has_no_place():
    rows = make_rows({'stl': 0, 'ew': -2, 'uw': 0, 'rep-mtl': 20}, noise=0.001)
    assert read_markdown(markdown_table(summarize(rows)))['rep-mtl']['semseg/mIoU ↑'].startswith('**')
    rows = [row for row in rows if (row.label, row.seed, row.metric) != ('rep-mtl', 1, 'semseg/mIoU')]
    summary = summarize(rows)
    table = read_markdown(markdown_table(summary))
    own = table['rep-mtl']
    assert own['semseg/mIoU ↑'].endswith(' (n=2)') and '**' not in own['semseg/mIoU ↑']
    assert own['Delta p, tasks ↑'].endswith(' (n=2)') and '**' not in own['Delta p, tasks ↑']
    assert own['mean rank ↓'] == '-' and own['depth/rel\\_err ↓'].startswith('**')
    assert table['uw']['semseg/mIoU ↑'].startswith('**') and '(n=' not in table['constant']['semseg/mIoU ↑']
    assert ' (n=2)' in check_latex(latex_table(summary))[4][1]
    assert '"n=" beside a number: it is the mean of so many of the 3 seeds' in ' '.join(definitions(summary))
    assert '"n="' not in ' '.join(definitions(summarize(make_rows())))
    assert PRELIMINARY in markdown_table(summary) and PRELIMINARY not in markdown_table(summarize(make_rows()))


def test_one_seed_has_no_deviation_and_no_interval():
    text = markdown_table(summarize(make_rows(seeds=(4,))))
    assert '±' not in read_markdown(text)['uw']['semseg/mIoU ↑']
    assert 'rep-mtl against ew-log: no statement, Delta p ' in text and 'better (' not in text
    assert 'comes from one seed, so there is no interval.' in text


def test_missing_runs_are_said_in_both():
    rows = [row for row in make_rows() if (row.label, row.seed) != ('uw', 1)]
    summary = summarize(rows, order=['stl', 'famo'])
    for text in (markdown_table(summary), latex_table(summary)):
        assert 'uw: no finished run of seed 1' in text and 'famo: no finished run of all seeds' in text
    assert 'No run is missing.' in markdown_table(summarize(make_rows()))


def test_captions_define_what_has_two_definitions():
    text = ' '.join(definitions(summarize(make_rows())))
    assert 'sample standard deviation (divisor n - 1)' in text and 'last checkpoint, no selection' in text
    assert 'against the single-task baseline of the same seed, then averaged over seeds' in text
    assert '"tasks": mean over tasks of the mean over the metrics of a task' in text
    assert 'Not counted: rmse.' in text and 'Mean rank: mean over the metrics that count' in text
    office = [make_row('ew', 0, key, 80.0, higher_is_better=True) for key in ('amazon/top1', 'avg/top1')]
    assert 'Not counted: averages over tasks.' in ' '.join(definitions(summarize(office)))
    other = ' '.join(definitions(summarize(make_rows({'ew': 0, 'uw': 1}))))
    assert 'against ew (equal weighting) of the same seed, because there is no single-task baseline' in other


def check_latex(text: str) -> list[list[str]]:
    """The cells of the rows, after checking that braces and environments close and all rows are as long."""
    depth = 0
    for char in re.sub(r'\\[{}]', '', text):
        depth += (char == '{') - (char == '}')
        assert depth >= 0
    assert depth == 0
    begun, ended = re.findall(r'\\begin{(\w+)}', text), re.findall(r'\\end{(\w+)}', text)
    assert begun == ended[::-1] == ['table', 'tabular']
    (columns,) = re.findall(r'\\begin{tabular}{(l+r+)}', text)
    body = text.partition(r'\midrule')[2].partition(r'\bottomrule')[0].replace(r'\midrule', '')
    rows = [re.split(r'(?<!\\)&', row) for row in body.split('\\\\\n') if row.strip()]
    assert rows and all(len(row) == len(columns) for row in rows)
    upper = text.partition(r'\toprule')[2].partition('\\\\\n')[0]
    spans = [int(n) for n in re.findall(r'\\multicolumn{(\d+)}', upper)]
    assert upper.count('&') + 1 - len(spans) + sum(spans) == len(columns)
    return rows


def test_latex_is_well_formed_and_has_the_same_cells():
    summary = summarize(make_rows())
    rows = check_latex(latex_table(summary))
    table = read_markdown(markdown_table(summary))
    for row in rows:
        shown = [re.sub(r'\\(textbf|underline){(.*)}', r'\2', cell.strip()) for cell in row]
        shown = [cell.replace('$-$', '-').replace(r'$\pm$', '±').replace('--', '-') for cell in shown]
        assert shown == [plain(cell) for cell in table[shown[0]].values()]
    text = latex_table(summary)
    assert r'\cmidrule(lr){2-3}' in text and r'\multicolumn{3}{c}{depth}' in text and r'$\uparrow$' in text
    assert text.count(r'\textbf{') == text.count(r'\underline{') == len(columns_of(summary)) - 1


@pytest.mark.parametrize('label', ['a_b&c%d$e#f', r'{\x}~^', '<b>"|"</b>', '[x](y)`z`', '*w*\n|a|'])
def test_labels_stay_labels(label):
    rows = make_rows({'stl': 0, 'ew': 0, label: 1})
    check_latex(latex_table(summarize(rows)))
    text = markdown_table(summarize(rows))
    for raw in ('<b>', '[x](', '`z`', '|a|', ' *w*'):
        assert raw not in text
    lengths = {len(re.split(r'(?<!\\)\|', row)) for row in text.splitlines() if row.startswith('|')}
    assert len(lengths) == 1
