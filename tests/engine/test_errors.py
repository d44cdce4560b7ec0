"""Each way in which a method could silently not act is one clear error."""

import pytest
import torch
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from tests.engine.harness import REP, run, wrap
from tests.engine.toy import ToyModel, make_batch, make_model

GRADIENT = [dict(regularizers=[REP]), dict(aggregator=dict(type='PCGrad'))]


@pytest.mark.parametrize(
    'shared, message',
    [
        (
            'backbone',
            r"shared='backbone' names no module: ToyModel has no 'backbone', it has \['data_preprocessor', 'encoder'",
        ),
        ('heads.z', r"heads has no 'z', it has \['a', 'b', 'c'\]"),
        ('', '`shared` is empty'),
    ],
)
def test_unknown_shared(shared, message):
    with pytest.raises(ValueError, match=message):
        run(make_model(), wrap(make_model(), shared=shared), [make_batch()])


def test_prefix_that_matches_no_loss():
    with pytest.raises(
        ValueError, match=r"prefix 'decode.' of task 'seg' matches no loss; the model returned \['a.loss'"
    ):
        run(make_model(), wrap(make_model(), tasks=dict(seg='decode.'), extra_losses='add'), [make_batch()])


def test_task_names_that_mmengine_would_add_to_the_loss():
    with pytest.raises(ValueError, match="task name 'gloss' contains"):
        run(make_model(), wrap(make_model(), tasks=['gloss']), [make_batch()])


def test_a_model_without_task_names():

    class Nameless(ToyModel):
        tasks = ()

    model = make_model(cls=Nameless)
    with pytest.raises(ValueError, match='Nameless does not name its tasks; set tasks=dict'):
        run(model, wrap(model), [make_batch()])


@pytest.mark.parametrize('settings', GRADIENT)
def test_a_task_that_does_not_depend_on_z(settings):

    class Bypass(ToyModel):
        def losses(self, inputs, a, b, c):
            own = self.heads['c'][0].weight
            return dict(super().losses(inputs, a, b, c), c=(own**2).mean())

    model = make_model(cls=Bypass)
    with pytest.raises((RuntimeError, ValueError), match="task 'c' does not depend on"):
        run(model, wrap(model, **settings), [make_batch()])


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class OnceModel(ToyModel):
    def losses(self, inputs, a, b, c):
        z = self.encoder(inputs)
        return dict(
            a=nn.functional.cross_entropy(self.heads['a'](z), a),
            b=(self.heads['b'](z) - b).abs().mean(),
            c=Once.apply(self.heads['c'](z) - c).mean(),
        )


def test_a_head_that_cannot_be_differentiated_twice():
    model = make_model(cls=OnceModel)
    with pytest.raises(ValueError, match="task 'c'.*twice"):
        run(model, wrap(model, regularizers=[REP]), [make_batch()])
    run(model, wrap(model, aggregator=dict(type='PCGrad')), [make_batch()])


def test_compiled_whole_model():
    model = make_model()
    with pytest.raises(RuntimeError, match='the whole model is compiled'):
        wrap(model).initialize_count_status(torch.compile(model), 0, 10)
    model.train_step = torch.compile(model.train_step, backend='eager')
    with pytest.raises(RuntimeError, match='the whole model is compiled'):
        wrap(model).initialize_count_status(model, 0, 10)


def test_compiled_by_the_runner_after_the_check():
    """mmengine compiles train_step after initialize_count_status."""
    model = make_model()
    wrapper = wrap(model, regularizers=[REP])
    wrapper.initialize_count_status(model, 0, 10)
    model.train_step = torch.compile(model.train_step, backend='eager')
    with pytest.raises(Exception, match='the whole model is compiled'):
        run(model, wrapper, [make_batch()])


def test_hooks_that_did_not_fire():

    class ByForward(ToyModel):
        def losses(self, inputs, a, b, c):
            z = self.encoder.forward(inputs)
            return dict(
                a=nn.functional.cross_entropy(self.heads['a'](z), a),
                b=(self.heads['b'](z) - b).abs().mean(),
                c=((self.heads['c'](z) - c) ** 2).mean(),
            )

    model = make_model(cls=ByForward)
    with pytest.raises(RuntimeError, match="hook on the shared module 'encoder' did not fire"):
        run(model, wrap(model), [make_batch()])
    model = make_model()
    with pytest.raises(RuntimeError, match='did not see forward'), wrap(model).optim_context(model):
        model.encoder(make_batch()['inputs'])
    with pytest.raises(RuntimeError, match='no method acted'):
        wrap(model).update_params(torch.ones((), requires_grad=True))


def test_a_shared_module_that_runs_twice():

    class Twice(ToyModel):
        def losses(self, inputs, a, b, c):
            self.encoder(inputs)
            return super().losses(inputs, a, b, c)

    model = make_model(cls=Twice)
    with pytest.raises(RuntimeError, match="'encoder' ran twice"):
        run(model, wrap(model), [make_batch()])


def test_a_head_that_writes_into_z():

    class InPlace(ToyModel):
        def losses(self, inputs, a, b, c):
            z = self.encoder[0](inputs)
            z = self.encoder(inputs)
            z.mul_(2)
            return dict(
                a=nn.functional.cross_entropy(self.heads['a'](z), a),
                b=(self.heads['b'](z) - b).abs().mean(),
                c=((self.heads['c'](z) - c) ** 2).mean(),
            )

    model = make_model(cls=InPlace)
    with pytest.raises(RuntimeError, match='modified in place by a head'):
        run(model, wrap(model, regularizers=[REP]), [make_batch()])


def test_losses_that_the_log_or_the_step_cannot_take():
    model = make_model()
    batch = make_batch()
    batch['c'] *= float('nan')
    with pytest.raises(FloatingPointError, match="loss of task 'c' is not finite .nan. in iteration 0"):
        run(model, wrap(model), [batch])

    class Zero(ToyModel):
        def losses(self, inputs, a, b, c):
            losses = super().losses(inputs, a, b, c)
            return dict(losses, b=losses['b'] * 0)

    model = make_model(cls=Zero)
    with pytest.raises(ValueError, match="loss of task 'b' is 0 in iteration 0; loss_transform='log' needs positive"):
        run(model, wrap(model, loss_transform='log', zero_loss='error'), [make_batch()])
    with pytest.raises(ValueError, match="'b'"):
        run(model, wrap(model, regularizers=[REP], zero_loss='error'), [make_batch()])


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(weighting=dict(type='UncertaintyWeighting'), loss_transform='log'), 'second transform'),
        (dict(precision='fp8'), "precision must be one of \\['fp32', 'bf16', 'fp16'\\], got 'fp8'"),
        (dict(extra_losses='ignore'), "extra_losses must be 'error' or 'add', got 'ignore'"),
        (dict(loss_transform='sqrt'), "loss_transform must be None or 'log', got 'sqrt'"),
        (dict(tasks='a'), "got the string 'a'"),
        (dict(zero_loss='skip'), "zero_loss must be 'unlabelled' or 'error', got 'skip'"),
        (dict(aggregator=dict(type='PCGrad', level='head')), "level must be one of .* got 'head'"),
    ],
)
def test_settings_that_contradict(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskOptimWrapper(torch.optim.SGD(make_model().parameters(), lr=1), shared='encoder', **settings)


def test_a_frozen_encoder_still_has_a_saliency():
    model = make_model()
    model.encoder.requires_grad_(False)
    before = model.encoder[0].weight.clone()
    log = run(model, wrap(model, regularizers=[REP]), [make_batch()])[0]
    assert 0 < log['rep_mtl/tsr'] and torch.equal(model.encoder[0].weight, before)


def test_a_compiled_encoder_works():
    model, other = make_model(), make_model()
    model.encoder = torch.compile(model.encoder, backend='aot_eager')
    settings = dict(loss_transform='log', regularizers=[REP])
    logs = run(model, wrap(model, **settings), [make_batch(seed=i) for i in range(2)])
    expected = run(other, wrap(other, **settings), [make_batch(seed=i) for i in range(2)])
    assert logs[1]['loss'] == pytest.approx(expected[1]['loss'], rel=1e-10)
    assert logs[1]['loss'] != pytest.approx(logs[0]['loss'], rel=1e-3)


def test_a_head_that_is_unlabelled_at_first_is_checked_later():
    class Late(OnceModel):
        first = True

        def losses(self, inputs, a, b, c):
            losses = super().losses(inputs, a, b, c)
            if self.first:
                losses['c'] = losses['c'] * 0
            return losses

    model = make_model(cls=Late)
    wrapper = wrap(model, regularizers=[dict(REP, saliency_transform=None)])
    run_once_differentiable = [make_batch()]
    with pytest.raises(ValueError, match="task 'c'.*twice"):
        run(model, wrapper, run_once_differentiable)
        model.first = False
        run(model, wrapper, run_once_differentiable)


def test_an_unclaimed_loss_that_is_not_finite():
    class Nan(ToyModel):
        def forward(self, inputs, a, b, c, mode='loss'):
            return {**super().forward(inputs, a, b, c), 'aux.loss': self.encoder[0].weight.sum() * float('nan')}

    model = make_model(cls=Nan)
    with pytest.raises(FloatingPointError, match='losses that no task claims is not finite .nan. in iteration 0'):
        run(model, wrap(model, extra_losses='add'), [make_batch()])
