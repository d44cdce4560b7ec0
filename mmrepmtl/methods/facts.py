"""Facts about a method for the tables of docs/methods.md, beside what its class declares for the trainer."""

from typing import NamedTuple


class Facts(NamedTuple):
    r"""Three cells of a table, in Markdown; equations are LaTeX between single dollars.

    GitHub and the site render an equation alike where a letter follows each backslash, a letter or digit precedes each
    underscore, and norms are written ``\lVert x \rVert``: a bar would end the cell.

    Args:
        paper: Authors, venue and year, equation or algorithm.
        rule: What the method computes.
        state: What is in the checkpoint beside random states; a *copy* is one gradient of all shared parameters.
        work: What a step does beside its passes, if anything.
    """

    paper: str
    rule: str
    state: str = 'none'
    work: str = ''
