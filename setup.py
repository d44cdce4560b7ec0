"""Package metadata. Versions and their reasons: requirements/*.txt; tried together: requirements/constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Return ``__version__`` of mmrepmtl/version.py without importing the package (torch may not be there yet)."""
    text = (ROOT / 'mmrepmtl' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'$", text, flags=re.MULTILINE).group(1)


def read_requirements(name: str) -> list[str]:
    """Return the requirements of requirements/``name``.txt, comments removed and ``-r OTHER.txt`` followed."""
    found = []
    for line in (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('-r '):
            found += read_requirements(line.removeprefix('-r ').strip().removesuffix('.txt'))
        elif line:
            found.append(line)
    return found


def read_long_description() -> str:
    """Return the README, or nothing in a source tree without one."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


setup(
    name='mmrepmtl',
    version=read_version(),
    description='Multi-task learning with representation-level task saliency (Rep-MTL), on PyTorch and mmengine',
    long_description=read_long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11',
    packages=find_packages(include=['mmrepmtl', 'mmrepmtl.*']),
    py_modules=['mmrepmtl_cli'],
    # In a checkout, links in the package lead to `configs`, since mmengine looks in the package: in .mim for a config
    # `mmrepmtl::NAME`, in mmrepmtl/configs for `from mmrepmtl.configs... import`. A wheel holds the files themselves.
    package_data={
        'mmrepmtl': [
            'py.typed',
            '.mim/model-index.yml',
            '.mim/configs/**/*.py',
            'configs/**/*.py',
            'comparison/paper/*.csv',
        ],
    },
    entry_points={'console_scripts': ['mmrepmtl = mmrepmtl_cli:main']},
    install_requires=read_requirements('runtime'),
    extras_require={
        'mm': read_requirements('mm'),
        'mm-upstream': read_requirements('mm-upstream'),
        'analysis': read_requirements('analysis'),
        'demo': read_requirements('demo'),
        'deploy': read_requirements('deploy'),
        'tests': read_requirements('tests'),
        'docs': read_requirements('docs'),
        'dev': read_requirements('dev'),
    },
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
