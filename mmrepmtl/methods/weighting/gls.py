"""GLS. Dimensions: T tasks."""

from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .base import Weighting
from .history import labelled_mask


class GLS(Weighting):
    """Geometric loss strategy (GLS): the geometric mean of the losses.

    Source: Chennupati et al., "MultiNet++", CVPR Workshops 2019: the scalar is ``(prod_t L_t)^(1/T)``, so the
    weight of task t is ``GLS / (T L_t)``. It is scale-equivariant: factors of single losses only change a common factor
    of all weights. LibMTL minimises the same, but reports other weights than it applies.

    Accumulation: no state; each micro-batch has the geometric mean of its own losses. DDP: of the global losses. An
    unlabelled task is left out, and T is the number of labelled ones.
    """

    facts = Facts(
        paper='Chennupati et al., MultiNet++, CVPRW 2019',
        rule=r'$\left(\prod_t L_t\right)^{1/T}$',
        convention='the reported weights GLS / (T L_t) are those applied; LibMTL minimises the same and reports others',
        unlabelled='left out; T counts the others',
        step='1/T of that of `ew`',
        equal_parts=False,
    )

    loss_transform = 'own'

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``(prod_t L_t)^(1/T)`` over the labelled tasks.

        Raises:
            ValueError: If a loss is not positive.
        """
        mask_T = labelled_mask(losses_T, labelled_T)
        check_positive(self, losses_T, mask_T)
        if not mask_T.any():
            return losses_T.sum() * 0
        return losses_T[mask_T].double().log().mean().exp().to(losses_T.dtype)
