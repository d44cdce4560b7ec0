"""IGBv2 and its agent: transitions and schedule by hand, the policy's density, and that it learns."""

import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from mmrepmtl.methods.weighting import IGBv2
from mmrepmtl.methods.weighting.sac import SoftActorCritic

LOSSES = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)
FIRST_AND_LAST = torch.tensor([True, False, True])


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def weights(weighting, losses, labelled=None, advance=True):
    leaf = losses.clone().requires_grad_()
    scalar = weighting(leaf, labelled, advance)
    return scalar.item(), torch.autograd.grad(scalar, leaf)[0]


def igb(**kwargs):
    return IGBv2(**dict(buffer_size=8, interval=2, random_epochs=3, learn_after=100, seed=4) | kwargs)


def test_igbv2_weights_log_losses_and_starts_at_random():
    weighting = igb()
    drawn = []
    for step in range(10):
        losses = LOSSES * 0.9**step
        scalar, w = weights(weighting, losses)
        assert math.isclose(scalar, ((w * losses) @ losses.log()).item())  # w = (weights of log losses) / L
        drawn.append(w * losses)
        assert math.isclose(drawn[-1].sum(), 3, rel_tol=1e-6)
    assert torch.stack(drawn).std(0).min() > 0.1
    assert weighting.learned() == [] and not list(weighting.parameters())


def test_igbv2_remembers_transitions_by_hand():
    """Epochs of two steps; the base is the mean of the second, so the first transition ends in the fifth step."""
    weighting = igb()
    rows = [
        tensor(4.0, 10.0),
        tensor(4.0, 10.0),
        tensor(2.0, 8.0),
        tensor(2.0, 12.0),
        tensor(1.5, 9.0),
        tensor(1.6, 5.0),
    ]
    chosen = [(weights(weighting, row)[1] * row).float() for row in rows]
    base, memory = tensor(2.0, 10.0), weighting.agent.memory
    assert weighting.agent.count == 2
    for slot, (before, after) in enumerate(((3, 4), (4, 5))):
        assert torch.allclose(memory['state'][slot], (rows[before] / base).float())
        assert torch.allclose(memory['next_state'][slot], (rows[after] / base).float())
        assert torch.allclose(memory['action'][slot], chosen[before])
        assert math.isclose(memory['reward'][slot], ((rows[before] - rows[after]) / base).min(), rel_tol=1e-6)
    assert memory['reward'][1] < 0 < memory['reward'][0]  # the task that got worse decides


def test_igbv2_unlabelled_tasks_stand_with_their_last_loss():
    weighting = igb()
    for _ in range(5):
        weights(weighting, LOSSES)
    _, w = weights(weighting, tensor(0.4, 0.0, 27.0), FIRST_AND_LAST)
    assert math.isclose(w[0] * 0.4 + w[2] * 27.0, 2, rel_tol=1e-6)
    memory, slot = weighting.agent.memory, weighting.agent.count - 1
    assert torch.allclose(memory['next_state'][slot], torch.tensor([0.8, 1.0, 0.9]))
    assert math.isclose(memory['reward'][slot], 0.1, rel_tol=1e-6)


def test_igbv2_holds_its_action_over_a_window():
    weighting = igb()
    first, second = (weights(weighting, row, advance=last)[1] * row for row, last in ((LOSSES, 0), (2 * LOSSES, 1)))
    assert torch.allclose(first, second)
    assert not torch.allclose(second, weights(weighting, LOSSES)[1] * LOSSES)


def test_igbv2_of_a_step_without_labels_keeps_no_action():
    """The next step's action is drawn for its own losses, and a window that is dropped in between leaves no trace."""
    nothing, drawn = torch.zeros(3, dtype=torch.bool), []
    for dropped in (False, True):
        weighting = igb()
        for _ in range(2):
            weights(weighting, LOSSES)
        weights(weighting, 0 * LOSSES, nothing)
        assert weighting.action_T is None
        if dropped:
            weights(weighting, 3 * LOSSES, advance=False)
            weighting.drop_window()
        drawn.append(torch.stack([weights(weighting, LOSSES)[1] for _ in range(3)]))
    assert torch.equal(*drawn)


def test_igbv2_lets_its_agent_choose_and_learn_on_schedule():
    weighting = igb(random_epochs=2, learn_after=3, update_every=4, interval=3)
    before, calls = [p.clone() for p in weighting_actor(weighting)], []
    for step in range(1, 17):
        weights(weighting, LOSSES * 0.95**step)
        now = [p.clone() for p in weighting.agent.actor]
        if any(not torch.equal(a, b) for a, b in zip(before, now, strict=True)):
            calls.append(step)
        before = now
        # Drawn by the agent as soon as the random epochs are over.
        expected = weighting.epoch_count >= 2
        assert chooses_by_agent(weighting) == expected
    assert calls == [12, 16]  # every fourth step after three epochs of three


def weighting_actor(weighting):
    weighting.setup(3)
    return [p.detach() for p in weighting.agent.actor]


def chooses_by_agent(weighting):
    """Whether the next action is the agent's, without moving the weighting on."""
    asked, act, state = [], weighting.agent.act, weighting.generator.get_state()
    weighting.agent.act = lambda s: asked.append(s) or act(s)
    weighting._choose(LOSSES)
    weighting.agent.act = act
    weighting.generator.set_state(state)
    return bool(asked)


def test_sac_density_is_that_of_tanh_of_a_gaussian():
    agent = SoftActorCritic(2, 3, torch.Generator().manual_seed(0), 1e-3, 4)
    state, noise = torch.randn(5, 2), torch.Generator().manual_seed(1)
    agent.generator = torch.Generator().manual_seed(1)
    action, log_density = agent._draw(state)
    hidden = state
    for i in range(0, 6, 2):
        hidden = torch.nn.functional.linear(hidden.relu() if i else hidden, agent.actor[i], agent.actor[i + 1])
    mean, log_std = hidden.split(3, 1)
    u = mean + log_std.exp() * torch.randn(5, 3, generator=noise)
    assert torch.allclose(action, 3 * u.softmax(1))
    bounded = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    assert torch.allclose(log_density, bounded.log_prob(u.tanh()).sum(1), atol=1e-4)


def test_sac_learns_to_prefer_what_is_rewarded():
    """The reward is the least of gains that need weights in the ratio 1 : 3, as with a hard and an easy task."""
    agent = SoftActorCritic(2, 2, torch.Generator().manual_seed(0), 3e-3, 512, hidden=(32, 32), discount=0.5)
    draws, state = torch.Generator().manual_seed(1), torch.ones(2)
    for _ in range(512):
        action = 2 * torch.randn(2, generator=draws).softmax(0)
        agent.remember(state, action, 5 * torch.minimum(3 * action[0], action[1]), state)
    untrained = torch.stack([agent.act(state) for _ in range(200)])
    for _ in range(250):
        agent.update(64)
    trained = torch.stack([agent.act(state) for _ in range(200)])
    gain = [torch.minimum(3 * actions[:, 0], actions[:, 1]).mean().item() for actions in (untrained, trained)]
    assert gain[1] > gain[0] + 0.2 and 1.2 < trained[:, 1].mean() < 1.6


def test_igbv2_refusals():
    for kwargs in (dict(buffer_size=0), dict(update_every=0)):
        with pytest.raises(ValueError, match='IGBv2: buffer_size and update_every must be at least 1'):
            IGBv2(**kwargs)


def test_igbv2_refuses_the_state_of_an_agent_without_the_tasks_that_it_is_for():
    trained = igb()
    weights(trained, LOSSES)
    state = {key: value for key, value in trained.state_dict().items() if not key.endswith('_T')}
    with pytest.raises(ValueError, match='IGBv2: the state has an agent but no window_sum_T'):
        igb().load_state_dict(state, strict=False)
    whole = igb()
    whole.load_state_dict(trained.state_dict())
    assert torch.equal(whole.agent.actor[0], trained.agent.actor[0])
