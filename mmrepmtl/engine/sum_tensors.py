"""The sum of some tensors, with a type that says so: Python's ``sum`` of tensors may be the number 0."""

from collections.abc import Iterable
from functools import reduce
from operator import add

from torch import Tensor


def sum_tensors(tensors: Iterable[Tensor]) -> Tensor:
    """Adds tensors of one shape, from the first to the last; a single one is returned as it is.

    Raises:
        TypeError: If there is none.
    """
    return reduce(add, tensors)
