"""The gradients of the tasks at Z that TaskGradientsHook logs, against gradients taken by hand."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmrepmtl.engine.hooks import TaskGradientsHook
from mmrepmtl.engine.hooks.task_gradients import losses_of_tasks, norms_and_cosines
from mmrepmtl.registry import HOOKS
from tests.engine.gradient_log import train
from tests.engine.harness import CASES, wrap
from tests.engine.toy import OwnSamples, ToyModel, make_batch, make_model

NAMES = ('a', 'b', 'c')


class TwoLevels(ToyModel):
    """Z has two levels, of which the second is computed from the first; head b reads both."""

    def __init__(self) -> None:
        super().__init__()
        first, *rest = self.encoder
        self.encoder = torch.nn.ModuleDict(dict(first=first, rest=torch.nn.Sequential(*rest)))
        self.encoder.forward = self.levels
        self.extra = torch.nn.Conv2d(5, 4, 1)

    def levels(self, inputs):
        first = self.encoder['first'](inputs)
        return [first, self.encoder['rest'](first)]

    def losses(self, inputs, a, b, c):
        first, z = self.encoder(inputs)
        return dict(
            a=torch.nn.functional.cross_entropy(self.heads['a'](z), a),
            b=(self.heads['b'](z + self.extra(first)) - b).abs().mean(),
            c=((self.heads['c'](z) - c) ** 2).mean(),
        )


def by_hand(model, batch, z_of) -> dict[str, float]:
    """Norms and cosines from one flat gradient per task."""
    captured = []
    handle = model.encoder.register_forward_hook(lambda *call: captured.append(z_of(call[2])))
    losses = model.losses(**batch)
    handle.remove()
    levels = captured[0]
    flat = {}
    for task, loss in losses.items():
        grads = torch.autograd.grad(loss, levels, retain_graph=True, allow_unused=True)
        flat[task] = torch.cat(
            [(torch.zeros_like(z) if g is None else g).flatten() for z, g in zip(levels, grads, strict=True)]
        )
    found = {f'norm/{task}': float(gradient.norm()) for task, gradient in flat.items()}
    for i, one in enumerate(NAMES):
        for two in NAMES[i + 1 :]:
            cosine = torch.nn.functional.cosine_similarity(flat[one], flat[two], dim=0)
            found[f'cos/{one}-{two}'] = float(cosine)
    return found


#: FAMO repeats the forward pass after its step.
METHODS = {name: case[0] for name, case in CASES.items()} | dict(famo=dict(weighting=dict(type='FAMO')))


@pytest.mark.parametrize('method', METHODS)
def test_the_log_has_the_gradients_at_z_and_training_is_the_same(method):
    plain, watched = make_model(), make_model()
    without = wrap(plain, **METHODS[method])
    for step in range(3):
        plain.train_step(make_batch(8, step), without)
    found = train(watched, wrap(watched, **METHODS[method]), TaskGradientsHook(interval=1))
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))
    assert found[0] == pytest.approx(by_hand(make_model(), make_batch(8, 0), lambda z: [z]), rel=1e-6)
    assert len(found[0]) == 6 and found[1] != found[0]


def test_levels_end_at_z_and_not_in_the_encoder():
    model = make_model(cls=TwoLevels)
    found = train(model, wrap(model), TaskGradientsHook(interval=1), steps=1)[0]
    reference = make_model(cls=TwoLevels)
    whole = by_hand(reference, make_batch(8, 0), lambda z: z)
    # The shallow level's gradient by hand also runs through the deeper one: views end it.
    reference.encoder.register_forward_hook(lambda module, args, z: [level.view_as(level) for level in z])
    views = by_hand(reference, make_batch(8, 0), lambda z: z)
    assert found == pytest.approx(views, rel=1e-6) and found['norm/a'] != pytest.approx(whole['norm/a'], rel=1e-3)


def test_only_every_interval_th_iteration_is_measured():
    model = make_model()
    found = train(model, wrap(model), TaskGradientsHook(interval=3), steps=5)
    assert found[0] == found[1] == found[2] != found[3] == found[4]


def test_tasks_with_samples_of_their_own_have_norms_alone():
    for mode in ('per_task', 'concat'):
        model = make_model(cls=OwnSamples)
        model.encoder_forward = mode
        found = train(
            model, wrap(model), TaskGradientsHook(interval=1), steps=1, batch=lambda _, seed: make_batch(9, seed)
        )
        assert set(found[0]) == {'norm/a', 'norm/b', 'norm/c'} and min(found[0].values()) > 0


def test_float16_gradients_are_measured_at_their_scale_and_told_without_it():
    models = [make_model(dtype=torch.float32) for _ in range(2)]
    hook = TaskGradientsHook(interval=1)
    batch = lambda size, seed: make_batch(size, seed, torch.float32)  # noqa: E731
    exact = train(models[0], wrap(models[0]), hook, 1, batch)[0]
    scaled = train(models[1], wrap(models[1], precision='fp16', loss_scale=dict(init_scale=4096.0)), hook, 1, batch)[0]
    assert scaled == pytest.approx(exact, rel=0.05, abs=0.02)


def test_a_task_without_a_gradient_is_left_out_and_prefixes_are_told_apart():
    products_TT = torch.tensor([[4.0, 0.0, 3.0], [0.0, 0.0, 0.0], [3.0, 0.0, 9.0]])
    assert norms_and_cosines(['a', 'b', 'c'], products_TT, True) == {'norm/a': 2.0, 'norm/c': 3.0, 'cos/a-c': 0.5}
    outputs = {'a.loss': torch.tensor(1.0), 'a.b.loss_x': [torch.ones(2), torch.ones(4)], 'a.acc': torch.ones(1)}
    found = losses_of_tasks(outputs | {'other.loss': torch.ones(())}, {'long': 'a.b.', 'short': 'a.', 'absent': 'z.'})
    assert found == {'long': torch.tensor(2.0), 'short': torch.tensor(1.0)}


def test_other_wrappers_and_intervals_are_refused():
    model = make_model()
    plain = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    hook = HOOKS.build(dict(type='TaskGradientsHook'))
    with pytest.raises(
        ValueError, match='needs a MultiTaskOptimWrapper.*this run has OptimWrapper. Leave the hook out'
    ):
        hook.before_train(SimpleNamespace(optim_wrapper=plain))
    with pytest.raises(ValueError, match='interval=0 must be at least 1'):
        TaskGradientsHook(interval=0)
