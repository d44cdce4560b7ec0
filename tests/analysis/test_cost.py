"""Parameters and operations against sums by hand, and a training step against the operations that it makes."""

import pytest
import torch
from torch import nn

from mmrepmtl.analysis.cost import TSD, Part, Passes, count_passes, model_cost, step_costs
from mmrepmtl.analysis.cost_figure import cost_figure
from mmrepmtl.apis import load_config
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.aggregation import PCGrad
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.methods.weighting import FAMO, EqualWeighting
from mmrepmtl.registry import MODELS
from tests.flops import flops
from tests.models.toy import build_model, make_images, make_sample

TASKS = ('semseg', 'depth', 'normal')


def test_a_small_network_by_hand():
    parts = {part.name: part for part in model_cost(build_model(TASKS), (16, 24))}
    assert list(parts) == ['encoder', *TASKS]
    # Convolutions: 2 x outputs x channels x kernel, at 8 x 12, then at 4 x 6.
    assert parts['encoder'].flops == 2 * (8 * 12 * 6) * 3 * 9 + 2 * (4 * 6 * 6) * 6 * 9
    assert parts['encoder'].parameters == 6 * 3 * 9 + 6 + 6 * 6 * 9 + 6
    for task, outputs in (('semseg', 5), ('depth', 1), ('normal', 3)):
        assert parts[task].flops == 2 * (4 * 6 * 8) * 6 * 9 + 2 * (4 * 6 * outputs) * 8
        assert parts[task].parameters == 8 * 6 * 9 + 8 + outputs * 8 + outputs
    assert [part.shared for part in parts.values()] == [True, False, False, False]


def test_the_model_stays_as_it_is():
    model = build_model(TASKS).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model_cost(model, (16, 24))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(('shared', 'before_z'), [('encoder', False), ('neck', True)])
def test_a_neck_belongs_to_the_side_of_z_that_the_config_says(shared, before_z):
    parts = {
        part.name: part
        for part in model_cost(build_model(TASKS, neck=dict(type='TaskSaliencyDecoder')), (16, 24), shared)
    }
    assert parts[TSD].shared is before_z
    # Per task a gate of 6 -> 1 at 24 positions, and two linear layers 6 -> 1 -> 6.
    assert parts[TSD].flops == 3 * (2 * 24 * 6 + 2 * 6 + 2 * 6)
    assert parts[TSD].parameters == 3 * ((6 + 1) + (6 + 1) + (6 + 6))


@pytest.mark.slow
def test_the_papers_encoder_and_head_have_their_known_sizes():
    cfg = load_config('nyuv2/rep-mtl_resnet50-d8_deeplab_b8-200e_nyuv2-288x384')
    cfg.model.encoder.pretrained = False
    parts = {part.name: part for part in model_cost(MODELS.build(cfg.model), (64, 96))}
    assert parts['encoder'].parameters / 1e6 == pytest.approx(23.5, abs=0.05)
    for task in TASKS:
        assert parts[task].parameters / 1e6 == pytest.approx(16.1, abs=0.05)


def test_other_models_and_sizes_are_refused():
    with pytest.raises(ValueError, match='only encoder, neck and heads of a MultiTaskModel are counted'):
        model_cost(nn.Linear(1, 1), (16, 24))
    encoder = nn.Sequential(nn.Conv2d(3, 6, 16))
    encoder.channels = [6]
    with pytest.raises(ValueError, match='does not run on an image of 8 x 8'):
        model_cost(build_model(TASKS, encoder=encoder), (8, 8))


@pytest.mark.parametrize(
    ('parts', 'expected'),
    [
        ((EqualWeighting(), None, ()), (3, 3)),
        ((FAMO(), None, ()), (4, 4)),
        ((EqualWeighting(), PCGrad(), ()), (3, 7)),
        ((EqualWeighting(), None, [RepMTL()]), (6, 3)),
        ((EqualWeighting(), PCGrad(), [RepMTL()]), (8, 9)),
        ((EqualWeighting(), None, [RepMTL(through='representation')]), (7, 3)),
        ((EqualWeighting(), PCGrad(), [RepMTL(through='representation')]), (7, 9)),
    ],
)
def test_passes_of_a_step(parts, expected):
    assert count_passes(*parts, num_tasks=3) == expected
    assert count_passes(*parts, num_tasks=3, num_batches=2) == (2 * expected[0], 2 * expected[1])


def test_a_regulariser_of_unknown_cost_is_named():
    with pytest.raises(ValueError, match='the cost of .* is not known'):
        count_passes(EqualWeighting(), None, [RepMTL(interval=2)], 3)


class SmallEntry(nn.Module):
    """Almost all of its operations have a gradient by their input, which the image has not."""

    channels = [32]

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 1, 1), nn.Conv2d(1, 32, 3, 2, 1), nn.Tanh(), nn.Conv2d(32, 32, 3, 2, 1)
        )

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize('mode', ['shared', 'per_task'])
def test_the_counted_cost_of_gradients_at_the_parameters_is_that_of_the_operations_made(mode):
    model = build_model(TASKS, encoder=SmallEntry(), encoder_forward=mode)
    parts = model_cost(model, (16, 24))
    wrapper = MultiTaskOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0), shared='encoder', aggregator=PCGrad())
    own = mode == 'per_task'
    samples = [make_sample(i, missing=[t for j, t in enumerate(TASKS) if own and i % 3 != j]) for i in range(3)]
    batch = dict(inputs=list(make_images(range(3))), data_samples=samples)
    made = flops(lambda: model.train_step(batch, wrapper))
    (cost,) = step_costs(parts, dict(pcgrad=count_passes(EqualWeighting(), PCGrad(), (), 3, 1, own)), None, own)
    images = 1 if own else 3  # images of each task
    gramian = 2 * 3 * 3 * parts[0].parameters  # inner products of the rows, which are no passes
    assert made - gramian == pytest.approx(images * cost.flops, rel=0.01)


PARTS = [Part('encoder', 10, 100, True), Part('a', 1, 10, False), Part('b', 1, 20, False)]


def test_methods_of_one_cost_are_together_cheapest_first():
    passes = {'pcgrad': Passes(3, 5), 'ew': Passes(3, 3), 'rep-mtl': Passes(6, 3), 'uw': Passes(3, 3)}
    costs = step_costs(PARTS, passes, 'stl')
    assert [(cost.methods, cost.flops) for cost in costs] == [
        (('ew', 'uw'), 390),
        (('rep-mtl',), 480),
        (('pcgrad',), 590),
        (('stl',), 690),
    ]
    assert costs[0].ratio == 1 and costs[2].ratio == pytest.approx(590 / 390) and costs[2].passes == '3 F_h + 5 F_e'


def test_samples_of_each_tasks_own_need_the_encoder_for_each():
    costs = step_costs(PARTS, {'ew': Passes(3, 3)}, 'stl', own_samples=True)
    assert [(cost.methods, cost.flops) for cost in costs] == [(('ew', 'stl'), 3 * 30 + 3 * 200)]


def test_the_figure_shows_the_counts():
    figure = cost_figure(PARTS, step_costs(PARTS, {'ew': Passes(3, 3), 'pcgrad': Passes(3, 5)}), 'a config')
    parameters, flops, steps = figure.axes
    assert [bar.get_width() for bar in parameters.patches] == [1e-5, 1e-6, 1e-6]
    assert [bar.get_width() for bar in flops.patches] == [1e-7, 1e-8, 2e-8]
    assert [text.get_text() for text in steps.texts] == [
        '3.9e-07  (1.00 x ew)  3 F_h + 3 F_e', '5.9e-07  (1.51 x ew)  3 F_h + 5 F_e'
    ]  # fmt: skip
    assert len(cost_figure(PARTS, [], 'a config').axes) == 2
