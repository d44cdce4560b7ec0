"""The pages and README: the files, commands, options and links that they name are there, and the words are plain."""

import ast
import contextlib
import functools
import importlib
import io
import re
import tokenize
from pathlib import Path

import pytest

from mmrepmtl.apis import available_methods
from mmrepmtl.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {page.name: page for page in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))}
ARCHITECTURE = (ROOT / 'docs/architecture.md').read_text(encoding='utf-8')
PICTURE = (ROOT / 'docs/images/architecture.svg').read_text(encoding='utf-8')
WALKS = re.split(r'^## ', ARCHITECTURE, flags=re.M)[1:]
FILES = r'`((?:mmrepmtl|configs|tools)/[\w./-]+)`'

#: {room: height in the picture}; a lower room has the larger number.
FLOORS = {name: int(y) for y, name in re.findall(r'y="(\d+)" class="name">(\w+)<', PICTURE)}
#: Sums over processes, plain torch that every room may use.
EVERYWHERE = 'mmrepmtl.methods.collectives'


@pytest.mark.parametrize('path', sorted(set(re.findall(FILES, ARCHITECTURE))))
def test_the_architecture_names_files_that_exist(path):
    assert (ROOT / path).exists()


def test_each_walk_meets_a_file_once():
    assert [walk.splitlines()[0] for walk in WALKS] == [
        'From a loss to `.grad`',
        'From a file to a batch',
        'From a config to a Runner',
        'From a checkpoint to a resumed run',
    ]
    for walk in WALKS:
        met = [path for path in re.findall(FILES, walk) if path.endswith('.py') and not path.startswith('tools/')]
        assert len(met) >= 10 and len(met) == len(set(met))


def test_every_room_is_in_the_table_and_in_the_picture():
    rooms = {path.parent.name for path in (ROOT / 'mmrepmtl').glob('*/__init__.py')}
    assert rooms <= set(FLOORS)
    for room in rooms - {'utils'}:
        assert f'| `mmrepmtl/{room}/` |' in ARCHITECTURE


def imported(file: Path) -> set[str]:
    """Modules of ours that a file imports, by their full names."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith('mmrepmtl.')}


@pytest.mark.parametrize('room', sorted({path.parent.name for path in (ROOT / 'mmrepmtl').glob('*/__init__.py')}))
def test_imports_point_down_the_floors_of_the_picture(room):
    for file in (ROOT / 'mmrepmtl' / room).rglob('*.py'):
        for name in imported(file):
            other = name.split('.')[1]
            if other in FLOORS and not name.startswith(EVERYWHERE):
                assert FLOORS[other] >= FLOORS[room], f'{file.relative_to(ROOT)} imports {name}'


def commands(text: str) -> list[tuple[str, str]]:
    """Pairs (file of the command, option) of the indented lines; the option is empty where a command begins."""
    found, file = [], None
    for line in text.splitlines():
        if not line.startswith('    '):
            file = None
            continue
        line = line.split('#')[0]
        start = re.search(
            r'(?:^\s+|[|;-]m |/bin/)(?:\$ )?(?:mmrepmtl ([a-z]\w*)|python (tools/[\w/]+\.py))|tools/\w+\.sh', line
        )
        if start:
            name, tool = start.groups()
            file = f'mmrepmtl/cli/{name}.py' if name else tool
            line = line[start.end() :]
            found += [(file, '')] if file else []
        found += [(file, option) for option in re.findall(r'(?<![\w-])--[a-z][\w-]*', line) if file]
    return found


@pytest.mark.parametrize('page', PAGES)
def test_commands_and_their_options_exist(page):
    for file, option in commands(PAGES[page].read_text(encoding='utf-8')):
        source = (ROOT / file).read_text(encoding='utf-8')
        if 'from mmrepmtl.datasets.conversion import' in source:
            source += ''.join(path.read_text() for path in (ROOT / 'mmrepmtl/datasets/conversion').glob('*.py'))
        command = re.search(r'^from mmrepmtl\.cli(?:\.| import )(?!arguments)(\w+)', source, re.M)
        if file.startswith('mmrepmtl/cli/') or command:
            known = options_of(Path(file).stem if file.startswith('mmrepmtl/cli/') else command[1])
        else:
            known = set(re.findall(r"'(--[\w-]+)'", source))
        assert not option or option in known, f'{file} has no {option}'


@functools.cache
def options_of(command: str) -> set[str]:
    """The options in ``mmrepmtl COMMAND --help``, and in that of its subcommands."""
    module = importlib.import_module(f'mmrepmtl.cli.{command}')
    found: set[str] = set()
    for words in ([], *([name] for name in getattr(module, 'ANALYSES', ()))):
        with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
            module.main([*words, '--help'])
        found |= set(re.findall(r'(?<![\w-])--[a-z][\w-]*', printed.getvalue()))
    return found


@pytest.mark.parametrize('page', PAGES)
def test_make_targets_and_commands_exist(page):
    text = PAGES[page].read_text(encoding='utf-8')
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    for target in re.findall(r'^    make ([\w-]+)|`make ([\w-]+)', text, re.M):
        assert re.search(rf'^{"".join(target)}:', makefile, re.M), target
    for name in re.findall(r'^    mmrepmtl ([a-z]\w*)|`mmrepmtl ([a-z]\w*)', text, re.M):
        assert ''.join(name) in COMMANDS


def anchors(text: str) -> set[str]:
    """As GitHub and MyST make them of headings."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r'^```.*?^```', '', PAGES[page].read_text(encoding='utf-8'), flags=re.S | re.M)
    for link in re.findall(r'\]\(((?!http)[^)\s]+)\)', text):
        file, _, anchor = link.partition('#')
        path = PAGES[page].parent / file if file else PAGES[page]
        # `contributing.md` and `changelog.md` include the files of the root.
        assert path.is_file(), link
        assert not anchor or anchor in anchors(path.read_text(encoding='utf-8')), link


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / 'docs/index.md').read_text(encoding='utf-8')
    listed = re.findall(r'^([\w/]+)$', ''.join(re.findall(r'```{toctree}\n(.*?)```', index, re.S)), re.M)
    pages = {Path(name).stem for name in PAGES} - {'README', 'index'}
    assert sorted(listed) == sorted(pages | {'api/modules'})


def test_every_method_is_listed_once():
    table = re.search(r'\| group \|.*?\n\n', PAGES['training.md'].read_text(encoding='utf-8'), re.S).group()
    listed = [name for cell in re.findall(r'`([a-z][^`]*)` \|', table) for name in cell.split()]
    assert sorted(listed) == available_methods()
    others = [name for name in listed if name != 'stl' and not name.startswith('rep-mtl')]
    readme = PAGES['README.md'].read_text(encoding='utf-8')
    assert f'{len(others)} loss weightings and gradient methods' in readme
    assert f'{len(listed) - 1} ways to train' in readme


def test_readme_is_short_and_has_a_picture():
    text = PAGES['README.md'].read_text(encoding='utf-8')
    assert len(text.splitlines()) < 120
    pictures = re.findall(r'!\[[^\]]+\]\(([^)]+)\)', text)
    assert pictures and all((ROOT / picture).stat().st_size < 150_000 for picture in pictures)
    assert '<!-- the site has a table of contents instead -->\n\n## Docs' in text  # docs/index.md ends there


def first_words(file: Path) -> list[str]:
    """Comments and docstrings that begin with Of, What or Where, with their lines."""
    text, found, last = file.read_text(encoding='utf-8'), [], -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            goes_on = last == token.start[0] - 1 and token.line.lstrip().startswith('#')
            last = token.start[0]
            if re.match(r'#:? *(Of|What|Where)\b' if goes_on else r'(?i)#:? *(of|what|where)\b', token.string):
                found.append(f'{file.name}:{last}: {token.string}')
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node) or ''
            if re.match(r'(Of|What|Where)\b', docstring):
                found.append(f'{file.name}:{getattr(node, "lineno", 1)}: {docstring.splitlines()[0]}')
    return found


@pytest.mark.parametrize('folder', ['mmrepmtl', 'tools', 'configs', 'projects'])
def test_comments_and_docstrings_begin_with_their_subject(folder):
    files = list((ROOT / folder).rglob('*.py'))
    assert files and not [line for file in files for line in first_words(file)]
