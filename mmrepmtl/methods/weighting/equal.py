"""Equal weighting. Dimensions: T tasks."""

from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import Weighting


class EqualWeighting(Weighting):
    """The plain sum of the task losses (EW).

    With ``loss_transform='log'`` it minimises the sum of log losses, the paper's "Rep-MTL (EW)" without its penalty. An
    unlabelled task is left out of the sum.
    """

    facts = Facts(
        paper='',
        rule=r'$\sum_t L_t$',
        convention='the sum, not the mean: T times the step of code that averages',
        unlabelled='left out of the sum',
        step='that of `ew`',
    )

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``sum_t L_t`` over the labelled tasks."""
        return losses_T.sum() if labelled_T is None else losses_T[labelled_T].sum()
