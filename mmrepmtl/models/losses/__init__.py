from .functional import angular_terms, binary_terms, check_penalty, cross_entropy_terms, regression_terms, unit_vectors

__all__ = ['angular_terms', 'binary_terms', 'check_penalty', 'cross_entropy_terms', 'regression_terms', 'unit_vectors']
