"""The parts that the converters in ``tools/dataset_converters`` share.

Files are written whole or not at all, by several processes; a second run goes on where the first one ended, if it was
begun with the same settings; what there is, is compared with the official counts.
"""

from .arrays import archive_array, fit_sample, save_array
from .running import SHOWN_FAILURES, USER_ERRORS, ProgressLines, convert_all, parse_size, run_converter
from .samples import Plan, Sample, check_source, claim_folder, pair_files, remove_leftovers, summarise

__all__ = [
    'SHOWN_FAILURES',
    'USER_ERRORS',
    'Plan',
    'ProgressLines',
    'Sample',
    'archive_array',
    'check_source',
    'claim_folder',
    'convert_all',
    'fit_sample',
    'pair_files',
    'parse_size',
    'remove_leftovers',
    'run_converter',
    'save_array',
    'summarise',
]
