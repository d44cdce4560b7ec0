"""RepMTL in two gloo processes that hold uneven parts of a batch, against one process that holds all of it."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from mmrepmtl.methods.regularizer import RegularizerContext
from mmrepmtl.methods.rep_mtl import RepMTL, cross_task_saliency_alignment, task_saliency_regulation
from tests.distributed.launch import run_processes
from tests.methods.rep_mtl_reference import TwoLayerNet, batch, gradients

PARTS = (slice(0, 2), slice(2, 7))
SAMPLES = 7
CASES = {
    'default': dict(),
    'tsr only': dict(lambda_csa=0),
    'csa only': dict(lambda_tsr=0, temperature=0.3),
    'floor': dict(saliency_floor=0.8),
    'no transform': dict(saliency_transform=None),
    'through Z': dict(through='representation'),
    'through Z, floor': dict(through='representation', saliency_floor=0.8),
    'own negatives': dict(gather_negatives=False, lambda_tsr=0),
}


def saliency_with_zeros():
    """(3, 7, 5, 8) with a zero sample on each rank, a zero task and one zero only relative to the batch."""
    saliency = torch.randn(3, SAMPLES, 5, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    saliency[:, 1] = 0
    saliency[:, 4] = 0
    saliency[2, 5] = 0
    saliency[1, 0] *= 1e-15
    return saliency


def run_case(net, arguments, part, world_size):
    """Backward of globally normalised losses and penalty; returns what must agree, or agree in the mean over ranks."""
    images, targets = (tensor[part] for tensor in batch(SAMPLES))
    inner = net.module if world_size > 1 else net
    z, outputs = net(images)
    # The engine's convention: the mean over ranks is the loss of the whole batch.
    losses = {
        task: weight * world_size * (outputs[task] - targets).square().sum() / (SAMPLES * 40)
        for task, weight in dict(a=1.0, b=0.3, c=5.0).items()
    }
    regularizer = RepMTL(**arguments)
    regularizer.measure_gradient = True
    terms = regularizer(losses, z)
    (at_z,) = torch.autograd.grad(sum(terms.values()), z, retain_graph=True)
    (sum(losses.values()) + sum(terms.values())).backward()
    values = {name: term.item() for name, term in terms.items()}
    return dict(gradients=gradients(inner), values=values, diagnostics=regularizer.diagnostics, at_z=at_z / world_size)


def run_target(net, part, world_size, through):
    """Three steps whose strength is held, one of them of two micro-batches of 7; the scales and the last gradient."""
    regularizer, inner = RepMTL(target_ratio=0.2, through=through), net.module if world_size > 1 else net
    scales = []
    for step, windows in enumerate((1, 2, 1)):
        net.zero_grad()
        for window in range(windows):
            images, targets = (tensor[part] for tensor in batch(SAMPLES, seed=step + 5 * window))
            z, outputs = net(images)
            losses = {
                task: weight * world_size * (outputs[task] - targets).square().sum() / (SAMPLES * 40)
                for task, weight in dict(a=1.0, b=0.3, c=5.0).items()
            }
            terms = regularizer(losses, z, RegularizerContext(backward_scale=1 / windows, advance=False))
            ((sum(loss.log() for loss in global_losses(losses, world_size)) + sum(terms.values())) / windows).backward()
            scales.append(regularizer.diagnostics['scale'])
        regularizer.end_step()
    strength = regularizer.strength
    return dict(scales=scales, mean=strength.mean, count=strength.count, gradients=gradients(inner))


def global_losses(losses, world_size):
    """In value the mean over ranks, in gradient this rank's."""
    for loss in losses.values():
        mean = loss.detach().clone()
        if world_size > 1:
            torch.distributed.all_reduce(mean)
        yield loss + (mean / world_size - loss.detach())


def in_process(rank):
    results = {}
    for through in ('all', 'representation'):
        net = DistributedDataParallel(TwoLayerNet().double())
        results[f'target {through}'] = run_target(net, PARTS[rank], 2, through)
    for name, arguments in CASES.items():
        net = DistributedDataParallel(TwoLayerNet().double())
        results[name] = run_case(net, arguments, PARTS[rank], 2)
    for gather in (True, False):
        saliency = saliency_with_zeros()[:, PARTS[rank]].requires_grad_()
        csa = cross_task_saliency_alignment(saliency, gather_negatives=gather)
        tsr = task_saliency_regulation(saliency, gather=gather)
        results[f'functions {gather}'] = [
            (value.item(), torch.autograd.grad(value, saliency)[0]) for value in (tsr, csa)
        ]
    lone = saliency_with_zeros()[:, [0, 2][rank] : [1, 3][rank]]
    results['lone'] = cross_task_saliency_alignment(lone, gather_negatives=True).item()
    results['lone group'] = lone_group(rank)
    results['refused'] = refused(rank)
    return results


def lone_group(rank):
    """With a group of its own each process is by itself."""
    groups = [torch.distributed.new_group([member]) for member in range(2)]
    saliency = saliency_with_zeros()[:, PARTS[rank]]
    own = cross_task_saliency_alignment(saliency, gather_negatives=True, process_group=groups[rank])
    return own.item(), cross_task_saliency_alignment(saliency).item()


def refused(rank):
    """A loss whose mean over ranks is negative stops both ranks, also the one where it is positive."""
    z = torch.randn(4, 3, requires_grad=True)
    loss = z.square().mean()
    try:
        RepMTL()(dict(fine=loss, bad=loss - loss.detach() + (1.0 if rank else -2.0)), z)
    except ValueError as error:
        return str(error)


@pytest.fixture(scope='module')
def processes():
    return run_processes(in_process)


@pytest.mark.parametrize('name', [name for name in CASES if name != 'own negatives'])
def test_uneven_processes_equal_one(processes, name):
    expected = run_case(TwoLayerNet().double(), CASES[name], slice(None), 1)
    ranks = [result[name] for result in processes]
    for parameter, gradient in expected['gradients'].items():
        for rank in ranks:  # DistributedDataParallel has averaged them.
            torch.testing.assert_close(rank['gradients'][parameter], gradient, rtol=1e-9, atol=1e-12, msg=parameter)
    torch.testing.assert_close(torch.cat([rank['at_z'] for rank in ranks]), expected['at_z'], rtol=1e-8, atol=1e-11)
    for term, value in expected['values'].items():
        assert sum(rank['values'][term] for rank in ranks) / 2 == pytest.approx(value, rel=1e-10)
    assert ranks[0]['values']['loss_csa'] == pytest.approx(ranks[1]['values']['loss_csa'], rel=1e-12)
    for diagnostic in {'tsr', 'csa', 'entropy', 'positive', 'negative'} & expected['diagnostics'].keys():
        mean = sum(rank['diagnostics'][diagnostic] for rank in ranks) / 2
        assert mean == pytest.approx(expected['diagnostics'][diagnostic], rel=1e-10), diagnostic
    assert all(rank['diagnostics']['grad_ratio'] > 0 for rank in ranks)


@pytest.mark.parametrize('through', ['all', 'representation'])
def test_a_held_ratio_is_that_of_one_process_and_equal_on_all(processes, through):
    expected = run_target(TwoLayerNet().double(), slice(None), 1, through)
    first, second = (result[f'target {through}'] for result in processes)
    assert first['scales'] == second['scales'] and torch.equal(first['mean'], second['mean'])
    assert first['count'] == second['count'] == expected['count'] == 3
    assert first['scales'] == pytest.approx(expected['scales'], rel=1e-5)
    assert expected['scales'][1] == expected['scales'][2] != expected['scales'][3]
    for name, gradient in expected['gradients'].items():
        size = gradient.abs().max().item()
        for rank in (first, second):
            torch.testing.assert_close(rank['gradients'][name], gradient, rtol=1e-5, atol=1e-6 * size, msg=name)


def test_the_penalty_matters_in_these_cases():
    plain = run_case(TwoLayerNet().double(), dict(lambda_tsr=1e-12, lambda_csa=0), slice(None), 1)['gradients']
    for arguments in CASES.values():
        found = run_case(TwoLayerNet().double(), arguments, slice(None), 1)['gradients']
        assert (found['encoder.0.weight'] - plain['encoder.0.weight']).norm() > 1e-2 * plain['encoder.0.weight'].norm()


def test_own_negatives_are_those_of_each_process(processes):
    for result, part in zip(processes, PARTS, strict=True):
        assert result['own negatives']['values']['loss_csa'] == pytest.approx(own_negatives(part), rel=1e-10)


def own_negatives(part):
    """CSA of the part's samples, with the saliency of the whole batch's losses."""
    images, targets = batch(SAMPLES)
    z, outputs = TwoLayerNet().double()(images)
    losses = [((outputs[task] - targets).square().mean()) for task in 'abc']
    saliency = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] / loss for loss in losses])
    return 0.9 * cross_task_saliency_alignment(saliency[:, part]).item()


def test_functions_equal_one_process(processes):
    saliency = saliency_with_zeros().requires_grad_()
    for index, function in enumerate((task_saliency_regulation, cross_task_saliency_alignment)):
        value = function(saliency)
        (gradient,) = torch.autograd.grad(value, saliency)
        found = [result['functions True'][index] for result in processes]
        assert sum(part for part, _ in found) / 2 == pytest.approx(value.item(), rel=1e-10)
        torch.testing.assert_close(torch.cat([part for _, part in found], dim=1) / 2, gradient, rtol=1e-9, atol=1e-13)
        alone = [result['functions False'][index] for result in processes]
        for part, (own, own_gradient) in zip(PARTS, alone, strict=True):
            local = saliency[:, part].detach().requires_grad_()
            assert own == pytest.approx(function(local).item(), rel=1e-10)
            torch.testing.assert_close(own_gradient, torch.autograd.grad(function(local), local)[0])


def test_one_sample_per_process_has_negatives(processes):
    saliency = saliency_with_zeros()[:, [0, 2]]
    assert processes[0]['lone'] == pytest.approx(cross_task_saliency_alignment(saliency).item(), rel=1e-10) != 0
    assert processes[0]['lone'] == processes[1]['lone']


def test_process_group_is_respected(processes):
    for result in processes:
        assert result['lone group'][0] == result['lone group'][1]


def test_all_processes_refuse_a_negative_mean_loss(processes):
    assert all("'bad': -0.5" in result['refused'] for result in processes)
