"""A small soft actor-critic (SAC) that lives beside a training run: on the CPU, with a random state of its own.

Dimensions: B transitions of a batch, S numbers of a state, A of an action, N inputs or outputs of a layer.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class SoftActorCritic:
    """Learns which softmax weights to give a number of alternatives from states, rewards and next states.

    Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, with two critics, target critics and
    a learned temperature. The actor draws ``u ~ N(mean(s), std(s))``; the action is ``A softmax(u)``, and the density
    that the entropy is taken of is that of the bounded ``tanh(u)``, of which the action is a function: the entropy of u
    itself has no bound.

    No ``nn.Module``, so that a network that holds one does not take its parameters for its own. Networks are lists of
    tensors, weight and bias in turn.

    Args:
        state_size: S.
        action_size: A.
        generator: CPU generator of all random numbers; its state is the owner's to save.
        lr: Adam's learning rate, of actor, critics and temperature.
        buffer_size: Number of transitions remembered.
        hidden: Widths of the two hidden layers.
        discount: Discount of future rewards.
        polyak: Share of the critics that the target critics take in each update.
        temperature: Weight of the entropy at the start.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        generator: torch.Generator,
        lr: float,
        buffer_size: int,
        hidden: Sequence[int] = (128, 128),
        discount: float = 0.99,
        polyak: float = 0.005,
        temperature: float = 0.2,
    ) -> None:
        self.generator, self.action_size = generator, action_size
        self.discount, self.polyak = discount, polyak
        self.actor = _network((state_size, *hidden, 2 * action_size), generator)
        self.critics = [_network((state_size + action_size, *hidden, 1), generator) for _ in range(2)]
        self.targets = [[p.detach().clone() for p in critic] for critic in self.critics]
        self.log_temperature = torch.tensor(math.log(temperature), requires_grad=True)
        trained = dict(
            actor=self.actor, critics=[p for critic in self.critics for p in critic], temperature=[self.log_temperature]
        )
        self.optimizers = {name: torch.optim.Adam(params, lr=lr) for name, params in trained.items()}
        self.memory = dict(
            state=torch.zeros(buffer_size, state_size),
            action=torch.zeros(buffer_size, action_size),
            reward=torch.zeros(buffer_size),
            next_state=torch.zeros(buffer_size, state_size),
        )
        self.count = 0

    @property
    def fill(self) -> float:
        """Fraction of the buffer that holds transitions."""
        return min(self.count / len(self.memory['reward']), 1.0)

    def act(self, state_S: Tensor) -> Tensor:
        """Draws an action (A,), which sums to A, for a state (S,)."""
        with torch.no_grad():
            return self._draw(state_S[None])[0][0]

    def remember(self, state_S: Tensor, action_A: Tensor, reward: Tensor, next_state_S: Tensor) -> None:
        """Adds a transition; the oldest is forgotten when the buffer is full."""
        slot = self.count % len(self.memory['reward'])
        for name, value in dict(state=state_S, action=action_A, reward=reward, next_state=next_state_S).items():
            self.memory[name][slot] = value
        self.count += 1

    @torch.enable_grad()
    def update(self, batch_size: int) -> None:
        """One step of critics, actor, temperature and target critics on a batch drawn with replacement."""
        size = min(self.count, len(self.memory['reward']))
        drawn_B = torch.randint(size, (batch_size,), generator=self.generator)
        batch = {name: values[drawn_B] for name, values in self.memory.items()}
        temperature = self.log_temperature.detach().exp()

        with torch.no_grad():
            action_BA, log_density_B = self._draw(batch['next_state'])
            value_B = self._least(self.targets, batch['next_state'], action_BA) - temperature * log_density_B
            target_B = batch['reward'] + self.discount * value_B
        pairs = torch.cat([batch['state'], batch['action']], 1)
        first, second = (F.mse_loss(_apply(critic, pairs)[:, 0], target_B) for critic in self.critics)
        self._step('critics', first + second)

        action_BA, log_density_B = self._draw(batch['state'])
        value_B = self._least(self.critics, batch['state'], action_BA)
        self._step('actor', (temperature * log_density_B - value_B).mean())

        # The target entropy is -A, as for an action with A bounded components.
        surplus = (log_density_B.detach() - self.action_size).mean()
        self._step('temperature', -self.log_temperature * surplus)

        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for new, old in zip(critic, target, strict=True):
                    old.lerp_(new, self.polyak)

    def _draw(self, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) and the logarithms of their densities (B,)."""
        mean_BA, log_std_BA = _apply(self.actor, state_BS).chunk(2, 1)
        log_std_BA = log_std_BA.clamp(-20, 2)
        noise_BA = torch.randn(mean_BA.shape, generator=self.generator)
        u_BA = mean_BA + log_std_BA.exp() * noise_BA
        normal_BA = -(noise_BA**2) / 2 - log_std_BA - math.log(2 * math.pi) / 2
        log_slope_BA = 2 * (math.log(2) - u_BA - F.softplus(-2 * u_BA))  # log of d tanh(u) / du
        return self.action_size * u_BA.softmax(1), (normal_BA - log_slope_BA).sum(1)

    def _least(self, critics: Sequence[Sequence[Tensor]], state_BS: Tensor, action_BA: Tensor) -> Tensor:
        pairs = torch.cat([state_BS, action_BA], 1)
        return torch.minimum(*(_apply(critic, pairs)[:, 0] for critic in critics))

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        params = optimizer.param_groups[0]['params']
        for param, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    def _tensors(self) -> list[Tensor]:
        networks = (self.actor, *self.critics, *self.targets, [self.log_temperature])
        return [p.detach() for network in networks for p in network] + list(self.memory.values())

    def state_dict(self) -> dict[str, Any]:
        """The whole state but the generator's, as tensors, numbers, lists and dicts."""
        return dict(
            tensors=[tensor.clone() for tensor in self._tensors()],
            optimizers={name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            count=self.count,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict` of an agent of the same sizes."""
        for tensor, saved in zip(self._tensors(), state['tensors'], strict=True):
            tensor.copy_(saved)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state['optimizers'][name])
        self.count = state['count']


def _network(sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """A multi-layer perceptron, initialised as ``nn.Linear`` does it."""
    params = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        for shape in ((fan_out, fan_in), (fan_out,)):
            bound = fan_in**-0.5
            params.append((bound * (2 * torch.rand(shape, generator=generator) - 1)).requires_grad_())
    return params


def _apply(network: Sequence[Tensor], values_BN: Tensor) -> Tensor:
    """The output of a perceptron with ReLU between its layers, (B, sizes[-1])."""
    for i in range(0, len(network), 2):
        values_BN = F.linear(values_BN.relu() if i else values_BN, network[i], network[i + 1])
    return values_BN
