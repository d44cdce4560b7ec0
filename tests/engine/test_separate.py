"""Several optimizers in one optim wrapper: configured as users do it, against one optimizer and plain loops."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper, MultiTaskOptimWrapperDict, SeparateOptimizers
from mmrepmtl.registry import MODELS
from tests.engine.harness import REP, Interrupt, config, parameters, run, wrap
from tests.engine.overlays import CASES, ready, window
from tests.engine.toy import ToyModel, make_batch, make_model, max_difference

TWO = dict(encoder=dict(optimizer=dict(type='SGD', lr=0.02)), heads=dict(optimizer=dict(type='SGD', lr=0.02)))


def build(model, optimizers=TWO, **settings):
    cfg = dict(optimizers=copy.deepcopy(optimizers), shared='encoder', **settings)
    return SeparateOptimizers(cfg)(model)


@pytest.mark.parametrize('name', CASES)
def test_two_equal_optimizers_are_one(name):
    settings = ready(name)
    batches = [make_batch(seed=i) for i in range(4 * window(name))]
    model, other = make_model(), make_model()
    run(model, build(model, **settings), batches)
    one = MultiTaskOptimWrapper(torch.optim.SGD(other.parameters(), lr=0.02), shared='encoder', **ready(name))
    run(other, one, batches)
    assert max_difference(model, other) == 0
    assert max_difference(model, make_model()) > 1e-6


@pytest.mark.parametrize(
    'changes',
    [
        dict(accumulative_counts=2),
        dict(precision='bf16'),
        dict(precision='fp16', loss_scale=dict(init_scale=256.0)),
        dict(regularizers=[REP], clip_grad=dict(max_norm=0.05)),
    ],
    ids=str,
)
@pytest.mark.parametrize('name', ['uw', 'nash-mtl', 'mtadam', 'imtl', 'famo'])
def test_so_they_are_with_accumulation_low_precision_and_clipping(name, changes):
    if name == 'mtadam' and 'clip_grad' in changes:
        pytest.skip('MTAdam is an optimizer, which clip_grad is refused for')
    dtype = torch.float32 if 'precision' in changes else torch.float64
    batches = [make_batch(seed=i, dtype=dtype) for i in range(4)]
    model, other = make_model(dtype=dtype), make_model(dtype=dtype)
    run(model, build(model, **ready(name, **changes)), batches)
    one = MultiTaskOptimWrapper(
        torch.optim.SGD(other.parameters(), lr=0.02), shared='encoder', **ready(name, **changes)
    )
    run(other, one, batches)
    assert max_difference(model, other) == 0


def test_each_optimizer_has_its_own_kind_rate_and_clipping():
    model, other = make_model(), make_model()
    optimizers = dict(
        encoder=dict(optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=0.01)),
        heads=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), clip_grad=dict(type='value', clip_value=0.02)),
    )
    wrapper = build(model, optimizers)
    batches = [make_batch(seed=i) for i in range(3)]
    run(model, wrapper, batches)
    adam = torch.optim.AdamW(other.encoder.parameters(), lr=0.01)
    sgd = torch.optim.SGD(other.heads.parameters(), lr=0.1, momentum=0.9)
    for batch in batches:
        adam.zero_grad(), sgd.zero_grad()
        sum(other.losses(**batch).values()).backward()
        norm = nn.utils.clip_grad_norm_(other.encoder.parameters(), 0.01)
        nn.utils.clip_grad_value_(other.heads.parameters(), 0.02)
        adam.step(), sgd.step()
    assert max_difference(model, other) < 1e-12
    assert wrapper.message_hub.get_scalar('train/encoder.grad_norm').current() == pytest.approx(float(norm))


def test_one_overflow_skips_the_step_of_all():
    model = make_model(dtype=torch.float32)
    wrapper = build(model, precision='fp16', aggregator=dict(type='PCGrad'))
    batch = make_batch(dtype=torch.float32)
    run(model, wrapper, [batch])
    before = [p.clone() for p in model.parameters()]
    run(model, wrapper, [dict(batch, c=batch['c'] * 1e30)])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    run(model, wrapper, [batch])
    assert not torch.equal(model.heads['a'][0].weight, before[4])


def test_what_a_method_learns_goes_to_the_optimizer_that_is_named():
    for name in ('encoder', 'heads'):
        model = make_model()
        weighting = dict(type='UncertaintyWeighting')
        wrapper = build(model, weighting=weighting, weighting_optimizer=name, weighting_lr=0.3)
        groups = {key: len(member.optimizer.param_groups) for key, member in wrapper.items()}
        assert groups == {'encoder': 1, 'heads': 1} | {name: 2}
        run(model, wrapper, [make_batch()])
        assert wrapper.weighting.log_variance_T.abs().min() > 0
        state = copy.deepcopy(wrapper.state_dict())
        other = build(model, weighting=weighting, weighting_optimizer=name, weighting_lr=0.3)
        other.load_state_dict(copy.deepcopy(state))
        assert torch.equal(other.weighting.log_variance_T, wrapper.weighting.log_variance_T)
        build(model, force_resume=True).load_state_dict(copy.deepcopy(state))
    with pytest.raises(ValueError, match="weighting_optimizer='neck' is none of the optimizers"):
        build(make_model(), weighting_optimizer='neck')


def run_config(work_dir, **changes):
    """As in docs/engine.md."""
    cfg = config(work_dir, **changes)
    cfg['optim_wrapper'] = dict(
        type='MultiTaskOptimWrapper',
        constructor='SeparateOptimizers',
        optimizers=dict(
            encoder=dict(
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
                paramwise_cfg=dict(norm_decay_mult=0.0),
                clip_grad=dict(max_norm=1.0),
            ),
            heads=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        ),
        shared='encoder',
        weighting=dict(type='UncertaintyWeighting'),
        aggregator=dict(type='PCGrad'),
        accumulative_counts=2,
    )
    cfg['param_scheduler'] = dict(
        encoder=[dict(type='MultiStepLR', milestones=[2], by_epoch=True)],
        heads=[dict(type='PolyLR', by_epoch=False, eta_min=1e-4)],
    )
    return cfg


def test_a_config_trains_schedules_each_and_resumes_exactly(tmp_path):
    whole = Runner(experiment_name='sep_whole', **run_config(tmp_path / 'whole'))
    whole.train()
    rates = whole.optim_wrapper.get_lr()
    assert isinstance(whole.optim_wrapper, MultiTaskOptimWrapperDict)
    assert rates['encoder.lr'][0] == pytest.approx(1e-4) and rates['heads.lr'][0] < 0.01
    decays = {group['weight_decay'] for group in whole.optim_wrapper['encoder'].optimizer.param_groups}
    assert decays == {0.0, 0.05}
    cut = Runner(experiment_name='sep_first', **run_config(tmp_path / 'cut'))
    cut.register_hook(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    Runner(experiment_name='sep_second', **run_config(tmp_path / 'cut', resume=True)).train()
    pairs = zip(parameters(tmp_path / 'whole/epoch_3.pth'), parameters(tmp_path / 'cut/epoch_3.pth'), strict=True)
    assert [name for (name, a), (_, b) in pairs if not torch.equal(a, b)] == []


# ---- who owns what ----


def entries(**modules):
    return {name: dict(optimizer=dict(type='SGD', lr=0.1), modules=names) for name, names in modules.items()}


class Tied(ToyModel):
    """Two heads share their first layer, and a parameter lies outside of all modules."""

    def __init__(self):
        super().__init__()
        self.heads['c'][0] = self.heads['a'][0]
        self.extra = nn.Parameter(torch.zeros(4))


def test_every_trainable_parameter_has_one_optimizer():
    model = make_model(cls=Tied)
    named = entries(encoder=['encoder'], heads=['heads'], rest=['extra'])
    wrapper = build(model, named)
    assert {k: sum(len(g['params']) for g in m.optimizer.param_groups) for k, m in wrapper.items()} == dict(
        encoder=4, heads=10, rest=1
    )
    with pytest.raises(ValueError, match="1 trainable parameters are in no optimizer and would never learn: 'extra'"):
        build(model, entries(encoder=['encoder'], heads=['heads']))
    model.extra.requires_grad_(False)
    build(model, entries(encoder=['encoder'], heads=['heads']))
    with pytest.raises(
        ValueError, match=r"'heads.c.0.weight' \(tied to 'heads.a.0.weight'\) is in two optimizers, 'x' and"
    ):
        build(model, entries(encoder=['encoder'], x=['heads.a', 'heads.b'], y=['heads.c']))
    with pytest.raises(ValueError, match="'encoder.0.weight' is in two optimizers, 'one' and 'two'"):
        build(model, entries(one=['encoder', 'heads'], two=['encoder']))


def test_the_longer_name_counts_and_all_of_the_model_may_be_named():
    model = make_model()
    wrapper = build(model, entries(first=['encoder.0'], all=['']))
    owned = {id(p) for g in wrapper['first'].optimizer.param_groups for p in g['params']}
    assert owned == {id(p) for p in model.encoder[0].parameters()}
    assert sum(len(g['params']) for g in wrapper.optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(), r'needs optimizers=dict\(NAME='),
        (dict(optimizers=TWO, optimizer=dict(type='SGD')), 'not both'),
        (dict(optimizers=dict(encoder=dict(type='SGD', lr=1))), "entry 'encoder' must be a dict with `optimizer`"),
        (dict(optimizers=entries(backbone=['backbone'], heads=['heads'])), "'backbone', which the model does not have"),
        (dict(optimizers=TWO | dict(multi_task=TWO['heads'])), "does not have|cannot be called 'multi_task'"),
        (dict(optimizers=TWO, type='AmpOptimWrapper'), "not optim_wrapper.type='AmpOptimWrapper'"),
        (
            dict(optimizers=TWO | dict(none=dict(TWO['heads'], modules=[]))),
            "the optimizer 'none' has no parameter",
        ),
    ],
)
def test_configs_that_cannot_be(cfg, message):
    with pytest.raises(ValueError, match=message):
        SeparateOptimizers(dict(cfg, shared='encoder'))(make_model())
    with pytest.raises(ValueError, match='paramwise_cfg of its own'):
        SeparateOptimizers(dict(optimizers=TWO, shared='encoder'), paramwise_cfg=dict(norm_decay_mult=0))


def test_objects_may_be_given_instead_of_a_config():
    model, other = make_model(), make_model()
    parts = dict(encoder=torch.optim.SGD(model.encoder.parameters(), lr=0.02))
    parts['heads'] = OptimWrapper(torch.optim.SGD(model.heads.parameters(), lr=0.02), clip_grad=dict(max_norm=1e9))
    wrapper = MultiTaskOptimWrapperDict(parts, shared='encoder', aggregator=dict(type='CAGrad'))
    run(model, wrapper, [make_batch()])
    run(other, build(other, aggregator=dict(type='CAGrad')), [make_batch()])
    assert max_difference(model, other) == 0
    with pytest.raises(RuntimeError, match='make their step together'):
        wrapper['heads'].step()
    both = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="is in two optimizers, 'encoder' and 'all'"):
        MultiTaskOptimWrapperDict(dict(encoder=parts['encoder'], all=both), shared='encoder')
    with pytest.raises(ValueError, match='must be an optimizer or a plain OptimWrapper, got MultiTaskOptimWrapper'):
        MultiTaskOptimWrapperDict(dict(a=MultiTaskOptimWrapper(both, shared='encoder')), shared='encoder')
    accumulating = OptimWrapper(torch.optim.SGD(model.heads.parameters(), lr=0.1), accumulative_counts=2)
    with pytest.raises(ValueError, match="'heads' has accumulative_counts=2"):
        MultiTaskOptimWrapperDict(dict(encoder=parts['encoder'], heads=accumulating), shared='encoder')


def test_a_checkpoint_of_other_optimizers_is_refused():
    model = make_model()
    state = wrap(model).state_dict()
    with pytest.raises(RuntimeError, match='optimizers: None in the checkpoint'):
        build(model).load_state_dict(copy.deepcopy(state))
    with pytest.raises(RuntimeError, match="this run has .'encoder', 'heads'"):
        build(model, force_resume=True).load_state_dict(copy.deepcopy(state))


# ---- an OptimWrapperDict of one's own ----


class OwnStep(ToyModel):
    """A train_step that steps an OptimWrapperDict by hand, as mmengine's guide shows it."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper['encoder'].optim_context(self):
            losses = self(**data, mode='loss')
        loss, log = self.parse_losses(losses)
        optim_wrapper['encoder'].update_params(loss)
        optim_wrapper['heads'].step()
        optim_wrapper['heads'].zero_grad()
        return log


def own_dict(model, settings, ours=MultiTaskOptimWrapper):
    encoder = ours(torch.optim.SGD(model.encoder.parameters(), lr=0.02), shared='encoder', **settings)
    return OptimWrapperDict(encoder=encoder, heads=OptimWrapper(torch.optim.SGD(model.heads.parameters(), lr=0.02)))


@pytest.mark.parametrize('name', [case for case in CASES if not case.startswith(('mtadam', 'famo', 'sdmgrad'))])
def test_parameters_of_another_optimizer_get_their_gradient(name):
    batches = [make_batch(seed=i) for i in range(3)]
    model, other = make_model(cls=OwnStep), make_model()
    run(model, own_dict(model, ready(name)), batches)
    one = MultiTaskOptimWrapper(torch.optim.SGD(other.parameters(), lr=0.02), shared='encoder', **ready(name))
    run(other, one, batches)
    assert max_difference(model, other) < 1e-9


def test_a_skipped_step_is_skipped_by_the_other_optimizer_too():
    model = make_model(cls=OwnStep)
    wrappers = own_dict(model, dict(aggregator=dict(type='PCGrad'), on_nonfinite='skip'))
    before = [p.clone() for p in model.parameters()]
    run(model, wrappers, [dict(make_batch(), c=make_batch()['c'] * float('nan'))])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_what_cannot_be_right_with_another_optimizer_is_refused_with_the_way_out():
    for settings, message in (
        (dict(precision='fp16'), "would stay multiplied by the loss scale.*constructor='SeparateOptimizers'"),
        (dict(aggregator=dict(type='PCGrad'), precision='fp16'), "'heads.a.0.weight'"),
    ):
        model = make_model(cls=OwnStep, dtype=torch.float32)
        with pytest.raises(ValueError, match=message):
            run(model, own_dict(model, settings), [make_batch(dtype=torch.float32)])
    model = make_model(cls=OwnStep)
    with pytest.raises(ValueError, match="MTAdam is an optimizer.*constructor='SeparateOptimizers'"):
        run(model, own_dict(model, dict(aggregator=dict(type='MTAdam'))), [make_batch()])


def test_two_of_our_wrappers_on_one_forward_pass_are_refused():
    model = make_model()
    first, second = wrap(model), wrap(model)
    with pytest.raises(RuntimeError, match='two of them act on one forward pass'):
        with first.optim_context(model), second.optim_context(model):
            model(**make_batch())


def test_a_plain_dict_and_the_usual_train_step_are_refused_with_the_way_out():
    head = dict(type='DepthHead', decoder=dict(type='ConvDecoder', hidden_channels=4, num_convs=1))
    model = MODELS.build(
        dict(type='MultiTaskModel', encoder=dict(type='TimmEncoder', name='test_resnet'), heads=dict(depth=head))
    )
    with pytest.raises(ValueError, match="cannot train one model together.*constructor='SeparateOptimizers'"):
        model.train_step({}, own_dict(model, {}))


def test_a_trainable_parameter_that_the_only_optimizer_lacks_is_refused_before_training():
    for settings in (dict(), dict(aggregator=dict(type='PCGrad'))):
        model = make_model()
        only_heads = MultiTaskOptimWrapper(
            torch.optim.SGD(model.heads.parameters(), lr=0.1), shared='encoder', **settings
        )
        with pytest.raises(
            ValueError, match="4 trainable parameters of the model are not in its optimizer: 'encoder.0.w"
        ):
            only_heads.initialize_count_status(model, 0, 10)
        model.encoder.requires_grad_(False)
        only_heads.initialize_count_status(model, 0, 10)
        run(model, only_heads, [make_batch()])
        model.encoder.requires_grad_(True)  # by a hook, later in the run
        with pytest.raises(ValueError, match='would never learn'):
            run(model, only_heads, [make_batch()])


def test_a_runner_refuses_it_too(tmp_path):
    cfg = config(tmp_path)
    runner = Runner.from_cfg(Config(dict(cfg, experiment_name='lacks')))
    model = runner.model
    runner.optim_wrapper = MultiTaskOptimWrapper(torch.optim.SGD(model.heads.parameters(), lr=0.1), shared='encoder')
    runner.param_schedulers = None
    with pytest.raises(ValueError, match='are not in its optimizer'):
        runner.train()
