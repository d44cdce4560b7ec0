"""Sphinx: the pages of this folder, and an API reference from the docstrings (`make docs`)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmrepmtl.version import __version__  # noqa: E402  the path has to be there first

project = 'mmrepmtl'
author = copyright = 'the mmrepmtl authors'
release = version = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.apidoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx.ext.mathjax',
]
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'mmrepmtl {release}'
# An unresolved link, anchor or cross reference is a warning, and `make docs` turns warnings into errors.
nitpicky = False

myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 4

apidoc_modules = [
    dict(
        path='../mmrepmtl',
        destination='api',
        module_first=True,
        automodule_options={'members', 'ignore-module-all', 'show-inheritance'},
    ),
]
# A name that a package re-exports is described once, where it is defined.
autodoc_default_options = {
    'members': True,
    'ignore-module-all': True,
    'show-inheritance': True,
    'member-order': 'bysource',
}
autodoc_typehints = 'signature'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def escape_bars(app, what, name, obj, options, lines: list[str]) -> None:
    """Keeps |x| in a docstring a norm: reStructuredText would take it for a substitution, which no page of ours has."""
    for number, line in enumerate(lines):
        if not line.startswith(' ' * 8):  # an example in a literal block
            parts = line.split('``')
            lines[number] = '``'.join(part if i % 2 else part.replace('|', r'\|') for i, part in enumerate(parts))


def setup(app) -> None:
    app.connect('autodoc-process-docstring', escape_bars)
