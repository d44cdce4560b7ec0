"""A kind of target from another repository: the file that CONTRIBUTING shows, and one that is like no other."""

import copy
import math
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmrepmtl.analysis.saliency_maps import AS_TARGET
from mmrepmtl.apis.result_files import WRITERS, ResultWriter
from mmrepmtl.datasets import EpochIndex, MultiTaskCSVDataset, MultiTaskFolderDataset
from mmrepmtl.datasets.checks import CHECKS
from mmrepmtl.datasets.csv import CELL_READERS
from mmrepmtl.datasets.declared import FILE_READERS, parse_number, read_text
from mmrepmtl.datasets.transforms import PackMultiTaskInputs, RandomZoom
from mmrepmtl.demo.prediction_panels import prediction_panel
from mmrepmtl.deployment.graph import FORMS, OnnxGraph, describe, predict
from mmrepmtl.evaluation.constant_baseline import evaluate_constants, fit_constants
from mmrepmtl.evaluation.constant_fitters import FITTERS, ConstantFitter
from mmrepmtl.evaluation.streaming import StreamingMetric, check_same_shape
from mmrepmtl.inspection.browse import browse_dataset
from mmrepmtl.inspection.config_check import check_links
from mmrepmtl.inspection.dataset_check import check_dataset
from mmrepmtl.inspection.sample_facts import FACTS, TargetFacts
from mmrepmtl.models.heads import TaskHead
from mmrepmtl.models.losses import regression_terms
from mmrepmtl.registry import DATASETS, METRICS, MODELS
from mmrepmtl.structures import KINDS, Kind, MultiTaskDataSample, gaps, register_kind
from mmrepmtl.visualization import prediction_grid, task_sheet
from mmrepmtl.visualization.errors import ERRORS, ErrorPanel
from mmrepmtl.visualization.panels import PAIRS, Pair, text_panel
from tests.datasets.own_files import write, write_table
from tests.harness import examples
from tests.structures.harness import forget_new_kinds
from tests.tools.own_config import TRAIN, VAL, make_config

EXAMPLE = examples()['height.py']
SIZE = (16, 20)


@pytest.fixture(autouse=True)
def no_new_kinds():
    with forget_new_kinds():
        yield
    for registry, names in ((MODELS, ('HeightHead', 'ScoreHead')), (METRICS, ('HeightMetric', 'ScoreMetric'))):
        for name in names:
            registry.module_dict.pop(name, None)


@pytest.fixture
def height(tmp_path, monkeypatch):
    """A config that imports the file of CONTRIBUTING, and learns heights beside depth."""
    (tmp_path / 'height.py').write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(tmp_path / 'data')
    for number, name in enumerate(TRAIN + VAL):
        roofs = np.random.default_rng(number).integers(0, 4000, SIZE).astype(np.uint16)
        write(tmp_path / f'data/roofs/{name}.png', roofs)
    decoder = config['model']['heads']['depth']['decoder']
    config['model']['heads'] = dict(
        depth=dict(type='DepthHead', decoder=decoder), height=dict(type='HeightHead', target='roof', decoder=decoder)
    )
    labels = dict(
        depth=dict(kind='depth', folder='depth', scale=1000), roof=dict(kind='height', folder='roofs', scale=100)
    )
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader']['dataset']['labels'] = labels
    metrics = [dict(type='DepthMetric', task='depth'), dict(type='HeightMetric', task='height', target='roof')]
    config |= dict(val_evaluator=metrics, test_evaluator=metrics)
    file = tmp_path / 'config.py'
    lines = [f'{key} = {value!r}' for key, value in config.items()]
    file.write_text('\n'.join(["custom_imports = dict(imports=['mmrepmtl', 'height'])", *lines]))
    yield Config.fromfile(file)
    sys.modules.pop('height', None)


def test_the_example_is_checked_trained_evaluated_and_drawn(height, tmp_path, capsys):
    assert KINDS['height'].like == 'depth' and gaps(['height']) == []
    assert check_dataset(height) == []
    assert re.search(
        r'roof \(height\): 5 of 5 samples labelled, 0\.\d\d % of their pixels void', capsys.readouterr().out
    )

    cfg = copy.deepcopy(height)
    cfg.merge_from_dict(
        dict(
            work_dir=str(tmp_path / 'run'),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            log_level='ERROR',
        )
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    metrics = runner.test()
    assert math.isfinite(metrics['height/abs_err']) and math.isfinite(metrics['depth/abs_err'])

    dataset = runner.test_dataloader.dataset
    specs = [metric for metric in cfg.test_evaluator if metric.task == 'height']
    constants = fit_constants(dataset, specs, progress=False)
    values = np.stack([dataset.load(index)['gt']['roof'] for index in range(len(dataset))])
    assert constants['height/rmse'] == pytest.approx(values[values > 0].mean(), rel=1e-3)
    assert evaluate_constants(dataset, specs, constants, progress=False)['height/abs_err'] > 0

    model = runner.model.eval()
    items = [dataset[0]]
    with torch.no_grad():
        sample = model.test_step({key: [item[key] for item in items] for key in items[0]})[0]
    metas, head_targets = dataset.metainfo['targets'], dict(depth='depth', height='roof')
    grid = prediction_grid([items[0]['inputs']], [sample], metas, head_targets)
    sheet = task_sheet(items[0]['inputs'], sample, metas, head_targets)
    assert grid.dtype == sheet.dtype == np.uint8
    prediction = sample.predictions['height'].numpy()
    panel = prediction_panel(prediction, metas['roof'], (40, 50))
    assert 'height in metres' in panel.legend
    _check_files(tmp_path / 'out', prediction, metas['roof'])
    _check_export(model, metas)


def _check_files(folder: Path, prediction: np.ndarray, meta: dict) -> None:
    path, told = WRITERS[meta['kind']](folder / 'roof', prediction, meta)
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    expected = np.rint(1000 * prediction[0].astype(np.float64)).clip(0, None)
    assert told['holds'] == 'millimetres, 0 invalid' and np.array_equal(stored, expected)


def _check_export(model, metas) -> None:
    about = describe(model, metas)['height']
    assert about['kind'] == 'height' and about['axes'] == ['batch', 'channel', 'height', 'width']
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        outputs = OnnxGraph(model)(images)
    expected = predict(model, images)
    torch.testing.assert_close(outputs[1], expected['height'].value)


def test_the_example_s_own_entry_counts_and_the_others_are_those_of_depth(height):
    dataset = DATASETS.build(height.train_dataloader.dataset | dict(pipeline=[]))
    results = dataset.load(0)
    roof, depth = (results['gt'][name].copy() for name in ('roof', 'depth'))
    zoomed = RandomZoom((2.0,)).zoom(results, 2.0, 0, 0)['gt']
    rows, columns = np.arange(SIZE[0]) // 2, np.arange(SIZE[1]) // 2
    np.testing.assert_array_equal(zoomed['roof'], roof[np.ix_(rows, columns)])
    np.testing.assert_allclose(zoomed['depth'], depth[np.ix_(rows, columns)] / 2)
    with pytest.raises(ValueError, match="target 'roof': found values from -1"):
        CHECKS['height']("target 'roof'", np.full(SIZE, -1, np.float32), {}, SIZE)


def test_links_between_the_example_s_parts_are_checked(height):
    targets = dict(roof=dict(kind='height'), depth=dict(kind='depth'))
    height.model.heads.depth.target = 'roof'
    height.val_evaluator[1].target = 'depth'
    defects, _ = check_links(height, dict(train=targets, val=targets))
    assert any("'depth': DepthHead learns targets of kind 'depth', but 'roof'" in defect for defect in defects)
    assert any("HeightMetric of 'height': it evaluates targets of kind 'height', but 'depth'" in d for d in defects)


def test_the_example_can_be_browsed(height, tmp_path):
    browse_dataset(height, out=tmp_path / 'seen.png', num=2)
    assert cv2.imread(str(tmp_path / 'seen.png')) is not None


# A kind without pixels that is like no other: every table about it has an entry of its own.


def register_score() -> None:
    register_kind(Kind('score', (), 'float32', (), 'a number', None, 'ScoreHead', 'ScoreMetric', endings=('.txt',)))

    def check(where, value, meta, size):
        if not 0 <= value <= 10:
            raise ValueError(f'{where}: found {value}, expected 0 to 10')

    CHECKS.register('score', check)
    FILE_READERS.register('score', lambda label: lambda path: parse_number(read_text(path), path))
    CELL_READERS.register('score', lambda label: lambda texts, places: parse_number(texts[0], places[0]))
    FACTS.register('score', lambda value: TargetFacts(1, valid=1, total=1))
    AS_TARGET.register('score', lambda prediction: prediction)
    FORMS.register('score', ('score', ('batch',)))
    WRITERS.register('score', lambda base, value, meta: (None, dict(score=float(value))))
    ERRORS.register('score', lambda truth, prediction, meta, size: ErrorPanel(text_panel(['off'], size), 'off'))

    def draw(truth, prediction, meta, size):
        return Pair(*(text_panel(['-' if value is None else f'{value:.2f}'], size) for value in (truth, prediction)))

    PAIRS.register('score', draw)

    class ScoreConstants(ConstantFitter):
        def __init__(self, metric):
            super().__init__(metric)
            self.seen = []

        def _add(self, target):
            self.seen.append(float(target))
            return 1

        def constants(self):
            return dict(mae=float(np.median(self.seen)))

        @staticmethod
        def predict(constant, target):
            return torch.tensor(constant, dtype=torch.float64)

    FITTERS.register('score', ScoreConstants)
    register_score_modules()


def register_score_modules() -> None:
    @MODELS.register_module()
    class ScoreHead(TaskHead):
        kind = 'score'

        def __init__(self, in_channels=None, target=None, loss_weight=1.0):
            super().__init__(dict(type='mmrepmtl.LinearDecoder'), 1, in_channels, target, loss_weight)

        def void_target(self, output):
            return output.new_tensor(float('nan'))

        def compute_terms(self, output, target):
            return dict(l1=regression_terms(output[:, 0], target, target.isfinite(), 'l1'))

        def predict(self, output, data_samples):
            return list(output[:, 0])

    @METRICS.register_module()
    class ScoreMetric(StreamingMetric):
        kind = 'score'
        names = ('mae',)

        def zeros(self):
            return dict(count=torch.tensor(0), error=torch.zeros((), dtype=torch.float64))

        def check(self, prediction, target):
            check_same_shape(prediction, target)

        def statistics(self, predictions, targets):
            errors = torch.stack([(p - t).abs().double() for p, t in zip(predictions, targets, strict=True)])
            return dict(count=torch.tensor(len(errors)), error=errors.sum())

        def compute(self, totals):
            return dict(mae=float(totals['error'] / totals['count']))

        def definition(self):
            return 'mae of the score'


@pytest.fixture
def scores(tmp_path) -> Path:
    for number, score in enumerate((1.5, 7.0, 3.0)):
        write(tmp_path / f'images/{number}.png', np.full((*SIZE, 3), 40 * number, np.uint8))
        path = tmp_path / f'scores/{number}.txt'
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'{score}\n')
    rows = [dict(image=f'images/{n}.png', score=s) for n, s in enumerate(('1.5', '7', '3'))]
    write_table(tmp_path / 'all.csv', rows)
    return tmp_path


def test_a_kind_like_no_other_is_read_learned_measured_and_drawn(scores):
    with pytest.raises(ValueError, match="has the kind 'score', expected one of segmentation"):
        MultiTaskFolderDataset(dict(score=dict(kind='score', folder='scores')), str(scores))
    register_score()
    assert gaps(['score']) == []
    pack = [PackMultiTaskInputs()]
    folders = MultiTaskFolderDataset(dict(score=dict(kind='score', folder='scores')), str(scores), pipeline=pack)
    table = MultiTaskCSVDataset(dict(score=dict(kind='score')), 'all.csv', str(scores), pipeline=pack)
    for dataset in (folders, table):
        targets = [dataset[EpochIndex(i, 0, 0)]['data_samples'].targets['score'] for i in range(3)]
        assert [target.item() for target in targets] == [1.5, 7.0, 3.0]
        assert all(target.shape == () and target.dtype == torch.float32 for target in targets)

    torch.manual_seed(0)
    encoder = dict(type='TimmEncoder', name='test_resnet', pretrained=False)
    heads = dict(score=dict(type='ScoreHead'))
    model = MODELS.build(
        dict(
            type='MultiTaskModel',
            data_preprocessor=dict(type='MultiTaskDataPreprocessor'),
            encoder=encoder,
            neck=dict(type='GlobalPoolNeck'),
            heads=heads,
        )
    ).eval()
    items = [folders[EpochIndex(i, 0, 0)] for i in range(3)]
    batch = {key: [item[key] for item in items] for key in items[0]}
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    with torch.no_grad():
        samples = model.test_step(batch)
    predicted = np.array([float(sample.predictions['score']) for sample in samples])
    mae = np.abs(predicted - [1.5, 7.0, 3.0]).mean()
    assert losses['score.loss_l1'].item() == pytest.approx(mae, rel=1e-4)
    metric = METRICS.build(dict(type='ScoreMetric', task='score'))
    metric.dataset_meta = folders.metainfo
    metric.process(None, [sample.to_dict() for sample in samples])
    assert metric.evaluate(3) == dict([('score/mae', pytest.approx(mae, rel=1e-4))])
    assert fit_constants(folders, [dict(type='ScoreMetric', task='score')], progress=False) == {'score/mae': 3.0}

    metas, names = folders.metainfo['targets'], dict(score='score')
    assert prediction_grid([items[0]['inputs']], samples[:1], metas, names).ndim == 3
    assert task_sheet(items[0]['inputs'], samples[0], metas, names).ndim == 3
    assert describe(model, metas) == dict(score=dict(kind='score', holds='score', axes=['batch']))


def test_a_value_that_its_own_check_refuses_is_named(scores):
    register_score()
    (scores / 'scores/1.txt').write_text('11')
    dataset = MultiTaskFolderDataset(dict(score=dict(kind='score', folder='scores')), str(scores))
    with pytest.raises(ValueError, match=r"1.txt: target 'score': found 11.0, expected 0 to 10"):
        dataset.load(1)


def test_files_of_a_result_with_a_kind_without_an_entry(scores, tmp_path):
    """The first place that lacks a kind says which it is."""
    register_kind(Kind('mood', (), 'float32', (), 'a number', None, 'MoodHead', 'MoodMetric'))
    sample = MultiTaskDataSample()
    sample.set_prediction('mood', torch.tensor(1.0))
    with pytest.raises(ValueError, match="visualization.panels.PAIRS knows nothing of the kind 'mood'"):
        task_sheet(np.zeros((*SIZE, 3), np.uint8), sample, dict(mood=dict(kind='mood')), dict(mood='mood'))
    writer = ResultWriter(tmp_path / 'out', dict(mood=dict(kind='mood')), dict(mood='mood'), 'none.pth')
    result = type('Result', (), dict(predictions=dict(mood=np.array(1.0)), name='1'))
    with pytest.raises(ValueError, match="result_files.WRITERS knows nothing of the kind 'mood'"):
        writer.write(result)
