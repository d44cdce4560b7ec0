"""The kinds of targets: that each is known everywhere, and that the facts are those that the rest of the code shows."""

import importlib
import inspect
import math
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import mmrepmtl
from mmrepmtl.datasets import MultiTaskDataset
from mmrepmtl.datasets.checks import CHECKS, check_target, check_targets
from mmrepmtl.datasets.transforms.formatting import to_target_tensor
from mmrepmtl.datasets.transforms.geometric import RESIZE, ZOOM, PadMultiTask, RandomFlip, Window
from mmrepmtl.evaluation.constant_fitters import FITTERS
from mmrepmtl.models.heads import TaskHead
from mmrepmtl.registry import METRICS, MODELS
from mmrepmtl.structures import KINDS, VOID, Kind, KindTable, MultiTaskDataSample, find_kind, gaps, register_kind
from mmrepmtl.structures.kinds import TABLES
from mmrepmtl.utils.mmseg import import_mmseg
from tests.structures.harness import forget_new_kinds

ROOT = Path(__file__).resolve().parents[2]
SIZE = (5, 7)
OTHER = dict(D=2)
META = dict(
    segmentation=dict(classes=['a', 'b']),
    classification=dict(classes=['a', 'b']),
    regression=dict(names=['x', 'y']),
)


@pytest.fixture(autouse=True)
def no_new_kinds():
    with forget_new_kinds():
        yield


@pytest.fixture(scope='module')
def everything() -> None:
    """All modules imported, so that all their tables are there."""
    try:
        import_mmseg('the tests', 'models')
    except ImportError:
        pytest.skip('needs mmseg, whose bridge has a table')
    for module in pkgutil.walk_packages(mmrepmtl.__path__, 'mmrepmtl.'):
        if not module.name.endswith('__main__'):
            importlib.import_module(module.name)


def declaration(kind: Kind) -> dict:
    return dict(kind=kind.name, **META.get(kind.name, {}))


def shape_of(axes: tuple) -> tuple[int, ...]:
    lengths = dict(zip(('H', 'W'), SIZE, strict=True)) | OTHER
    return tuple(lengths[axis] if isinstance(axis, str) else axis for axis in axes)


def void_array(kind: Kind) -> np.ndarray:
    return np.full(shape_of(kind.array), kind.void, kind.dtype)


# The one test that tells whoever adds a kind where it is unknown: fill the tables that it lists.
def test_every_table_covers_every_kind(everything) -> None:
    assert gaps() == []
    unknown = [f'{table.place}: {kind}' for table in TABLES for kind in table if kind not in KINDS]
    assert unknown == []


def test_the_tables_are_where_they_say(everything) -> None:
    assert len({table.place for table in TABLES}) == len(TABLES) >= 14
    for table in TABLES:
        module, _, name = table.place.rpartition('.')
        assert getattr(importlib.import_module(module), name) is table


def test_a_new_kind_is_listed_with_every_place_to_fill(everything) -> None:
    register_kind(Kind('score', (), 'float32', (), 'a number', None, 'ScoreHead', 'ScoreMetric'))
    register_kind(Kind('gloss', ('H', 'W'), 'float32', (1, 'H', 'W'), 'a map', 0.0, 'GlossHead', 'GlossMetric'))
    about_maps = {table.place for table in TABLES if table.dense}
    about_others = {table.place for table in TABLES if table.dense is False}
    assert {
        'mmrepmtl.datasets.transforms.geometric.RESIZE',
        'mmrepmtl.datasets.transforms.geometric.ZOOM',
        'mmrepmtl.datasets.conversion.arrays.ARCHIVED',
        'mmrepmtl.mmseg.samples.FIELDS',
    } == about_maps
    assert about_others == {'mmrepmtl.datasets.csv.CELL_READERS'}
    every = {table.place for table in TABLES}
    assert {
        'mmrepmtl.datasets.checks.CHECKS',
        'mmrepmtl.datasets.declared.FILE_READERS',
        'mmrepmtl.evaluation.constant_fitters.FITTERS',
        'mmrepmtl.visualization.panels.PAIRS',
        'mmrepmtl.visualization.errors.ERRORS',
        'mmrepmtl.analysis.saliency_maps.AS_TARGET',
        'mmrepmtl.apis.result_files.WRITERS',
        'mmrepmtl.inspection.sample_facts.FACTS',
        'mmrepmtl.deployment.graph.FORMS',
    } == every - about_maps - about_others
    assert set(gaps(['gloss'])) == {f'{place}: gloss' for place in every - about_others}
    assert set(gaps(['score'])) == {f'{place}: score' for place in every - about_maps}
    assert set(gaps()) == {*gaps(['gloss']), *gaps(['score'])}


SWITCHES = {
    # Only these kinds have them: the unit of depth, its inverse, class names and colours, the ball of normals.
    'inspection/dataset_check.py',
    'demo/prediction_panels.py',
    'deployment/graph.py',
    'mmseg/visualizer.py',
}


def test_no_other_file_asks_for_a_kind_by_name() -> None:
    """A switch that a new kind would fall through: make it a table, or a fact of the kinds."""
    names = '|'.join(KINDS)
    asks = re.compile(rf"(==|!=|\bin\b) *\(?\[?'({names})'|kind\w*\] in \(")
    files = {path.relative_to(ROOT / 'mmrepmtl').as_posix(): path for path in (ROOT / 'mmrepmtl').rglob('*.py')}
    asking = {name for name, path in files.items() if asks.search(path.read_text())}
    assert asking - SWITCHES == set()


@pytest.mark.parametrize('kind', KINDS.values(), ids=lambda kind: kind.name)
class TestFacts:
    def test_head_and_metric_are_there_and_say_the_same_kind(self, kind: Kind) -> None:
        head, metric = MODELS.get(kind.head), METRICS.get(kind.metric)
        assert issubclass(head, TaskHead) and head.kind == metric.kind == kind.name
        if kind.count:
            assert kind.count in inspect.signature(head).parameters

    def test_the_void_target_of_the_head_is_the_void_of_the_kind(self, kind: Kind) -> None:
        decoder = torch.nn.Identity()
        arguments = {kind.count: 2} if kind.count else {}
        head = MODELS.get(kind.head)(decoder=decoder, **arguments)
        raw = torch.zeros(1, kind.tensor[0] if len(kind.tensor) == 3 else 2, *(SIZE if kind.dense else ()))
        void = head.void_target(raw)
        assert tuple(void.shape) == shape_of(kind.tensor)
        assert void.dtype == getattr(torch, kind.dtype)
        if kind.void is not None:
            assert torch.equal(void, to_target_tensor(void_array(kind), kind.name)) or math.isnan(kind.void)
            assert bool(void.isnan().all()) == math.isnan(kind.void)
            assert all(float(count) == 0 for _, count in head.compute_terms(raw, void[None]).values())

    def test_a_void_target_passes_the_checks_and_becomes_the_tensor(self, kind: Kind) -> None:
        meta = declaration(kind)
        check_targets(dict(t=meta))
        value = 1 if kind.void is None else void_array(kind)
        check_target('t', value, meta, SIZE, 'file')
        tensor = to_target_tensor(value, kind.name)
        assert tuple(tensor.shape) == shape_of(kind.tensor) and tensor.dtype == getattr(torch, kind.dtype)
        with pytest.raises(ValueError, match="file: target 't'"):
            check_target('t', np.zeros((3, 3, 9), np.float16), meta, SIZE, 'file')

    def test_what_a_declaration_must_list(self, kind: Kind) -> None:
        if kind.names:
            with pytest.raises(ValueError, match=f"'t' of kind '{kind.name}' must declare its '{kind.names}'"):
                check_targets(dict(t=dict(kind=kind.name)))

    def test_transforms_keep_void_void_and_the_form(self, kind: Kind) -> None:
        meta = declaration(kind)
        value = 1 if kind.void is None else void_array(kind)
        results = dict(img=np.zeros((*SIZE, 3), np.float32), gt=dict(t=value), targets=dict(t=meta))
        padded = PadMultiTask(size=(6, 8)).transform(RandomFlip(prob=1).transform(results))['gt']['t']
        if not kind.dense:
            assert padded is value
            return
        np.testing.assert_array_equal(padded, np.full((6, 8, *value.shape[2:]), kind.void, kind.dtype))
        resized = RESIZE[kind.name](value, meta, (10, 14), 'bilinear')
        zoomed = ZOOM[kind.name](value, meta, Window(SIZE, 0, 0, 1.5), False)
        assert resized.dtype == zoomed.dtype == value.dtype
        np.testing.assert_array_equal(resized, np.full((10, 14, *value.shape[2:]), kind.void))
        np.testing.assert_array_equal(zoomed, value)

    def test_it_is_in_the_tables_that_people_read(self, kind: Kind) -> None:
        guide = (ROOT / 'docs/custom_dataset.md').read_text()
        row = next(line for line in guide.splitlines() if line.startswith(f'| `{kind.name}` |'))
        *_, heads, metrics = [cell.strip() for cell in row.strip('|').split('|')]
        assert heads == f'`{kind.head}`' and metrics.startswith(f'`{kind.metric}`')
        for owner in (
            MultiTaskDataset,
            MultiTaskDataSample,
            importlib.import_module('mmrepmtl.deployment.graph').OnnxGraph,
        ):
            assert re.search(rf'^ +{kind.name} ', owner.__doc__, re.M), owner.__name__


def test_a_palette_belongs_to_the_classes_of_pixels() -> None:
    with pytest.raises(ValueError, match='3 palette colours for 2 classes'):
        check_targets(dict(t=dict(kind='segmentation', classes=['a', 'b'], palette=[[0, 0, 0]] * 3)))
    with pytest.raises(ValueError, match='256 classes, but label 255 is void'):
        check_targets(dict(t=dict(kind='segmentation', classes=list(range(256)))))
    check_targets(dict(t=dict(kind='classification', classes=list(range(256)))))


@pytest.mark.parametrize('name', [None, 'deph', ['depth'], 3])
def test_an_unknown_kind_is_named_with_those_there_are(name) -> None:
    with pytest.raises(ValueError, match=r"^target 't': kind is .*, expected one of segmentation, binary, depth"):
        check_targets(dict(t=dict(kind=name)))
    with pytest.raises(ValueError, match='^here: kind is '):
        find_kind(name, 'here')


GLOSS = dict(
    name='gloss',
    array=('H', 'W'),
    dtype='float32',
    tensor=(1, 'H', 'W'),
    prediction='(1, H, W) float',
    void=0.0,
    head='GlossHead',
    metric='GlossMetric',
)


def test_a_kind_is_registered_once() -> None:
    kind = register_kind(Kind(**GLOSS))
    assert KINDS['gloss'] is kind and list(KINDS)[-1] == 'gloss'
    assert register_kind(Kind(**GLOSS)) == kind  # a module that is imported again
    with pytest.raises(ValueError, match="there is a kind 'gloss' with other facts already"):
        register_kind(Kind(**GLOSS | dict(void=-1.0)))
    assert find_kind('gloss', '') is kind


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(tensor=('H', 'W', 1)), r"kind 'gloss': dense, but its tensor is .*; \(H, W\) must come last"),
        (dict(void=None), "kind 'gloss': dense, but without a void value"),
        (dict(array=('D',), tensor=('D', 1)), "kind 'gloss': axes .* of the array, but .* of the tensor"),
        (dict(names='classes'), "kind 'gloss': 'classes' is not among its options"),
        (dict(required=('unit',)), "kind 'gloss': 'unit' is not among its options"),
        (dict(files=('unit',)), "kind 'gloss': 'unit' is not among its options"),
        (dict(like='gluss'), "kind 'gloss': like: kind is 'gluss', expected one of"),
        (dict(like='normals'), r"kind 'gloss' cannot be like 'normals', whose array is \('H', 'W', 3\) instead of"),
        (dict(like='segmentation'), "cannot be like 'segmentation', whose dtype is 'int64' instead of 'float32'"),
        (dict(like='depth', void=-1.0), "cannot be like 'depth', whose void is 0.0 instead of -1.0"),
        (dict(like='depth', directions=True), "cannot be like 'depth', whose directions is False instead of True"),
        (dict(dtype='uint8'), "kind 'gloss': dtype is 'uint8', expected 'int64' or 'float32'"),
    ],
)
def test_facts_that_contradict_each_other(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Kind(**GLOSS | changes)


def test_nan_is_like_nan() -> None:
    facts = dict(name='angle', array=('D',), tensor=('D',), void=float('nan'), names='names', options=('names',))
    register_kind(Kind(**GLOSS | facts, like='regression'))
    assert CHECKS['angle'] is CHECKS['regression']


class TestTable:
    def test_a_kind_that_it_lacks_is_an_error_that_says_where_to_add_it(self) -> None:
        register_kind(Kind(**GLOSS))
        message = (
            r"mmrepmtl.datasets.checks.CHECKS knows nothing of the kind 'gloss', only of segmentation, .*; add it with "
            r"CHECKS.register\('gloss', ...\)"
        )
        with pytest.raises(ValueError, match=message):
            check_target('t', np.zeros(SIZE, np.float32), dict(kind='gloss'), SIZE, 'file')
        assert 'gloss' not in CHECKS and CHECKS.get('gloss') is None and CHECKS.get('gloss', 1) == 1
        with pytest.raises(ValueError, match="RESIZE is about dense kinds only, which 'regression' is not"):
            RESIZE['regression']
        with pytest.raises(ValueError, match="knows nothing of the kind 'glass'"):
            CHECKS['glass']

    def test_an_entry_is_registered_once_and_for_a_kind_that_it_is_about(self) -> None:
        register_kind(Kind(**GLOSS))
        seen = []
        CHECKS.register('gloss', lambda where, value, meta, size: seen.append((where, size)))
        check_target('t', np.zeros(SIZE, np.float32), dict(kind='gloss'), SIZE, 'file')
        assert seen == [("file: target 't'", SIZE)] and 'gloss' in CHECKS
        with pytest.raises(ValueError, match="CHECKS has another entry for the kind 'gloss' already"):
            CHECKS.register('gloss', print)
        with pytest.raises(ValueError, match="CHECKS.register: kind is 'glass', expected one of"):
            CHECKS.register('glass', print)
        with pytest.raises(ValueError, match="ZOOM is about dense kinds only, which 'classification' is not"):
            ZOOM.register('classification', print)
        with pytest.raises(ValueError, match="CELL_READERS is about kinds without pixels only, which 'gloss' is not"):
            importlib.import_module('mmrepmtl.datasets.csv').CELL_READERS.register('gloss', print)

    def test_a_kind_that_is_like_another_has_its_entries_unless_it_has_its_own(self, everything) -> None:
        register_kind(Kind(**GLOSS, like='depth'))
        assert gaps(['gloss']) == []
        assert CHECKS['gloss'] is CHECKS['depth'] and FITTERS.get('gloss') is FITTERS['depth']
        assert 'gloss' in CHECKS and 'gloss' not in list(CHECKS)
        CHECKS.register('gloss', print)
        assert CHECKS['gloss'] is print and CHECKS['depth'] is not print
        shinier = Kind(**GLOSS | dict(name='shine', like='gloss'))
        register_kind(shinier)
        assert CHECKS['shine'] is print and RESIZE['shine'] is RESIZE['depth']

    def test_it_is_otherwise_a_dict(self) -> None:
        table = KindTable('tests.TABLE', dict(depth=1, binary=2))
        assert dict(table) == dict(depth=1, binary=2) and list(table) == ['depth', 'binary'] and len(table) == 2
        assert [gap for gap in gaps() if gap.startswith('tests.TABLE')] == [
            f'tests.TABLE: {name}' for name in ('segmentation', 'normals', 'classification', 'regression')
        ]


def test_void_is_one_number() -> None:
    assert {kind.void for kind in KINDS.values() if kind.has_ids and kind.dense} == {VOID} == {255}
    written = re.compile(r'(?<![\w.])VOID\w* *= *\d')
    files = [path for path in (ROOT / 'mmrepmtl').rglob('*.py') if written.search(path.read_text())]
    assert [path.name for path in files] == ['kinds.py']
