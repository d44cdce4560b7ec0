"""Modules of the package leave each other's private attributes alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mmrepmtl

ROOT = Path(mmrepmtl.__file__).parent

#: Private names of other packages for which they have no public one.
FOREIGN = {
    # mmengine: Runner, BaseDataset, OptimWrapper, Config, BaseModule; where it keeps downloaded files
    '_load_from', '_resume', '_train_loop', '_train_dataloader', '_randomness_cfg', '_indices',
    '_accumulative_counts', '_cfg_dict', '_imported_names', '_dump_init_info', '_get_mmengine_home',
    # torch: Tensor, Module, distributed, autograd, compiled modules, base classes of BatchNorm
    '_version', '_buffers', '_foreach_norm', '_get_backend', '_timeout', '_get_default_store', '_compiled_call_impl',
    '_torchdynamo_orig_callable', '_forward_cls', '_functorch', '_BatchNorm', '_NormBase',
    # torchjd
    '_GramianWeighting',
    # Python: named tuples, processes, threads
    '_replace', '_fields', '_exit', '_current_frames',
}  # fmt: skip


def _private(name: object) -> bool:
    return isinstance(name, str) and name.startswith('_') and not name.startswith('__')


def _is_own(node: ast.expr) -> bool:
    """Whether an attribute of this expression is the object's or the class's own."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == 'super'
    return isinstance(node, ast.Name) and node.id in ('self', 'cls')


def _read(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every private name that is looked for in something else."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _private(node.attr) and not _is_own(node.value):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names if _private(alias.name))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            if node.func.id in ('getattr', 'hasattr', 'setattr') and _private(name) and not _is_own(node.args[0]):
                yield node.lineno, name


def test_the_search_sees_every_way_to_look():
    source = (
        'self._a\nsuper()._b\ncls._c\nother._d\ngetattr(x, "_e", 0)\nfrom m import _f\nx._g = 1\nself.x._h\nx.__i__\n'
        'getattr(self, "_j")\nx().y._k'
    )
    assert [name for _, name in sorted(_read(ast.parse(source)))] == ['_d', '_e', '_f', '_g', '_h', '_k']


def test_no_module_reads_private_attributes_of_another_object():
    found, seen = [], set()
    for path in sorted(ROOT.rglob('*.py')):
        if 'configs' in path.relative_to(ROOT).parts:
            continue
        for line, name in _read(ast.parse(path.read_text())):
            seen.add(name)
            if name not in FOREIGN:
                found.append(f'{path.relative_to(ROOT)}:{line} reads {name}')
    assert not found, '\n'.join(found)
    assert seen == FOREIGN, f'no longer read: {FOREIGN - seen}'
