"""Facts about a method for the tables of the pages, beside what its class declares for the trainer.

``tools/misc/methods_table.py`` writes the tables. A cell that follows from the class (levels, passes, heads, what is
reduced over ranks) is made from the class attributes; a fact here adds what no attribute says.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Term(NamedTuple):
    """One term of a penalty.

    Args:
        symbol: The term in the rule, LaTeX without dollars.
        accumulation: As in :class:`Facts`, where the term has a weight.
        reduced: As in :class:`Facts`, where the term has a weight.
    """

    symbol: str
    accumulation: str = ''
    reduced: str = ''


class Facts(NamedTuple):
    r"""Cells of the tables, in Markdown; equations are LaTeX between single dollars.

    GitHub and the site render an equation alike where a letter follows each backslash, a letter or digit precedes each
    underscore, and norms are written ``\lVert x \rVert``: a bar would end the cell.

    Args:
        paper: Authors, venue and year, equation or algorithm.
        rule: The equation of the method; '' for a penalty, which has :attr:`terms`.
        convention: The choices where papers and public code differ, and why.
        unlabelled: The treatment of a task without labels in the batch.
        step: Length of the step where all tasks have the same gradient and loss; methods of one text share a row.
        state: The entries of the checkpoint beside random states; a *copy* is one gradient of all shared parameters.
        work: Work of a step beside its passes, if any.
        heads: Remark on the weights of the heads.
        equal_parts: Whether micro-batches give what one batch of all of them gives; read for weightings only, since
            the level of an aggregator tells.
        accumulation: Remark on accumulation.
        reduced: Tensors that are reduced over ranks beside the losses (of a weighting) or the rows (of an aggregator).
        terms: The terms of a penalty, {argument that is the weight of the term: term}.
        scale: The argument of a penalty that, where it is set, multiplies all terms by a factor s.
    """

    paper: str
    rule: str
    convention: str
    unlabelled: str
    step: str
    state: str = 'none'
    work: str = ''
    heads: str = ''
    equal_parts: bool = True
    accumulation: str = ''
    reduced: str = ''
    terms: Mapping[str, Term] = {}
    scale: str = ''


#: The facts of ``loss_transform='log'``, which is a setting and no class; the rule is that of the weighting.
LOG_LOSSES = Facts(
    paper='',
    rule='',
    convention='the logarithm of the global mean loss',
    unlabelled='left out before the logarithm',
    step='in units of log losses',
    equal_parts=False,
)

#: The facts of ``single_task=True``, which is a setting and no class.
SINGLE_TASK = Facts(
    paper='',
    rule='$L_t$ of one task',
    convention='the same network with one head, same data and schedule; writes `stl.json` with test metrics',
    unlabelled='a batch without its labels is a step with gradient 0',
    step='that of `ew`',
)
