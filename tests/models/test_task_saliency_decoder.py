from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmrepmtl.apis import load_config
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.models import TaskSaliencyDecoder
from tests.engine.reference import literal_penalty
from tests.models.toy import PlainEncoder, build_model, make_images, make_sample

TASKS = ('semseg', 'depth', 'normal')
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PAPER = CONFIGS / 'nyuv2/rep-mtl_resnet50-d8_deeplab_b8-200e_nyuv2-288x384.py'
EXAMPLE = CONFIGS / 'nyuv2/rep-mtl_resnet50-d8-tsd_deeplab_b8-200e_nyuv2-288x384.py'
BUDGET = 0.06e9
#: Operations that move or make memory without arithmetic.
FREE = ('view', 'unsqueeze', 't', 'detach', 'empty', 'expand', 'alias')


def randomize(neck: TaskSaliencyDecoder, seed: int = 1) -> TaskSaliencyDecoder:
    """Gives the zero layers weights, so that the masks are not 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in neck.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 3
    return neck


def build(seed: int = 0, **arguments):
    model = build_model(TASKS, seed, neck=dict(type='TaskSaliencyDecoder', reduction=2), **arguments)
    randomize(model.neck)
    return model.double()


def batch(indices=range(4)):
    samples = [make_sample(index, dtype=torch.float64) for index in indices]
    return make_images(indices, dtype=torch.float64), samples


class ElementCounter(TorchDispatchMode):
    """Counts one operation per element of whatever is no product of matrices and no convolution."""

    PRODUCTS = ('convolution', 'addmm', 'mm', 'bmm')

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix('aten::')
        if name not in self.PRODUCTS and name not in FREE:
            elements = max(value.numel() for value in (output, *args) if isinstance(value, torch.Tensor))
            self.counts[name] = self.counts.get(name, 0) + elements
        return output


def test_it_costs_at_most_the_stated_flops_at_the_size_of_nyuv2():
    neck, z = TaskSaliencyDecoder([2048], TASKS), torch.rand(1, 2048, 36, 48)
    with torch.no_grad(), FlopCounterMode(display=False) as products:
        neck(z)
    convolutions = 3 * 2 * 2048 * 36 * 48
    assert products.get_total_flops() == convolutions + 3 * 2 * 2 * 2048 * 128
    with torch.no_grad(), ElementCounter() as elements:
        neck(z)
    # The product of the gates and that with Z, per task, and the mean.
    assert elements.counts['mul'] >= 6 * z.numel() and elements.counts['mean'] == z.numel()
    total = products.get_total_flops() + sum(elements.counts.values())
    assert 0.8 * BUDGET < total <= BUDGET, elements.counts


def test_at_the_start_every_view_is_the_representation():
    levels = (torch.rand(2, 6, 4, 5), torch.rand(2, 8, 2, 3))
    for z in (levels[0], levels):
        neck = TaskSaliencyDecoder([6] if z is levels[0] else [6, 8], TASKS)
        assert neck.channels == ([6] if z is levels[0] else [6, 8])
        views = neck(z)
        assert list(views) == list(TASKS)
        for view in views.values():
            torch.testing.assert_close(view, z, rtol=0, atol=0)


def test_the_mask_is_a_gate_per_position_times_a_gate_per_channel():
    neck = randomize(TaskSaliencyDecoder([6], TASKS, reduction=2)).double()
    z = torch.rand(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    for task, view in neck(z).items():
        gates = neck.gates[task][0]
        first, second = gates.channel[0], gates.channel[2]
        expected = torch.empty_like(z)
        for b in range(2):
            hidden = (first.weight @ z[b].flatten(1).mean(1) + first.bias).clamp(min=0)
            channel = 2 / (1 + (-(second.weight @ hidden + second.bias)).exp())
            for h in range(4):
                for w in range(5):
                    position = gates.position.weight[0, :, 0, 0] @ z[b, :, h, w] + gates.position.bias[0]
                    expected[b, :, h, w] = z[b, :, h, w] * channel * 2 / (1 + (-position).exp())
        torch.testing.assert_close(view, expected)
        gradients = [torch.autograd.grad(value.square().sum(), z, retain_graph=True)[0] for value in (view, expected)]
        torch.testing.assert_close(*gradients)
        mask = neck.masks(z)[task][0]
        assert mask.shape == z.shape and mask.min() > 0 and mask.max() < 4
        torch.testing.assert_close(mask * z, view)


def test_each_head_reads_its_own_view():
    model = build()
    images, _ = batch()
    before = model(images)
    with torch.no_grad():
        model.neck.gates['depth'][0].position.bias += 1
    after = model(images)
    changed = {task for task in TASKS if not torch.equal(before[task], after[task])}
    assert changed == {'depth'}
    read = []
    model.heads['depth'].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model(images)
    z = model.encoder(images)
    torch.testing.assert_close(read[0], model.neck(z)['depth'])


def test_one_step_of_rep_mtl_equals_the_formula_at_the_encoder_s_output():
    model, other = build(), build()
    settings = dict(type='RepMTL', lambda_tsr=0.5, lambda_csa=0.7)
    gradients = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(
        lambda *_: gradients.update((name, parameter.grad.clone()) for name, parameter in model.named_parameters())
    )
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', loss_transform='log', regularizers=[settings])
    images, samples = batch()
    with wrapper.optim_context(model):
        losses = model(images, samples, mode='loss')
    wrapper.update_params(losses['loss'])

    captured = []
    other.encoder.register_forward_hook(lambda *call: captured.append(call[2]))
    losses = {key.split('.')[0]: value for key, value in other.loss(images, samples).items() if '.loss_' in key}
    penalty = literal_penalty(losses, captured[0], 0.5, 0.7)
    parameters = dict(other.named_parameters())
    only = dict(
        zip(
            parameters,
            torch.autograd.grad(penalty, list(parameters.values()), retain_graph=True, allow_unused=True),
            strict=True,
        )
    )
    (sum(loss.log() for loss in losses.values()) + penalty).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)
    # The penalty trains the masks, like the rest.
    for task in TASKS:
        assert only[f'neck.gates.{task}.0.position.weight'].abs().max() > 1e-6
        assert only[f'neck.gates.{task}.0.channel.2.bias'].abs().max() > 1e-6
    assert all(gradient.any() for name, gradient in only.items() if name.startswith('encoder'))


@pytest.mark.parametrize('mode', ['per_task', 'concat'])
def test_tasks_with_samples_of_their_own(mode):
    model = build(encoder_forward=mode)
    images, _ = batch(range(5))
    rows = dict(semseg=[0, 1], depth=[2, 4], normal=[3])
    whole = model(images)
    for task, own in model.own_outputs(images, rows).items():
        torch.testing.assert_close(own, whole[task][rows[task]])


def test_a_model_of_one_task_has_one_mask():
    model = build_model(('depth',), neck=dict(type='TaskSaliencyDecoder'))
    assert list(model.neck.gates) == ['depth']
    predictions = model.predict(make_images([0]))
    assert predictions[0].pred.depth.shape[-2:] == (16, 24)


def test_several_levels():
    class Two(PlainEncoder):
        def __init__(self):
            super().__init__()
            self.channels = [6, 6]

        def forward(self, images):
            level = super().forward(images)
            return level, level[..., ::2, ::2]

    model = build(encoder=Two())
    images, _ = batch()
    views = model.represent(images)
    assert [level.shape for level in views['depth']] == [(4, 6, 4, 6), (4, 6, 2, 3)]
    assert model(images)['depth'].shape == (4, 1, 16, 24)


@pytest.mark.parametrize(
    ('neck', 'message'),
    [
        (dict(type='TaskSaliencyDecoder', tasks=['depth']), r"tasks=\['depth'\], but the heads are \('semseg', "),
        (dict(type='TaskSaliencyDecoder', reduction=0), 'reduction must be at least 1, got 0'),
    ],
)
def test_settings_that_do_not_fit(neck, message):
    with pytest.raises(ValueError, match=message):
        build_model(TASKS, neck=neck)


@pytest.mark.parametrize('shape', [(2, 6), (2, 6, 5), (2, 5, 6, 4)])
def test_only_maps_are_masked(shape):
    with pytest.raises(ValueError, match=r'expected maps \(B, 6, H, W\)'):
        TaskSaliencyDecoder(6, TASKS)(torch.rand(shape))


def test_it_is_off_in_every_config_but_its_example():
    users = [path for path in CONFIGS.rglob('*.py') if 'TaskSaliencyDecoder' in path.read_text()]
    assert users == [EXAMPLE]
    assert load_config(PAPER).model.get('neck') is None


def test_the_example_is_the_paper_s_recipe_with_the_neck():
    paper, example = load_config(PAPER), load_config(EXAMPLE)
    assert example.model.pop('neck') == dict(type='TaskSaliencyDecoder')
    assert example.optim_wrapper.shared == 'encoder'
    paper.pop('work_dir'), example.pop('work_dir')
    assert example.to_dict() == paper.to_dict()


def test_the_documentation_says_where_it_comes_from():
    assert 'Not part of the Rep-MTL paper' in TaskSaliencyDecoder.__doc__
    assert 'not part of the paper' in (CONFIGS.parent / 'docs/encoders.md').read_text()
