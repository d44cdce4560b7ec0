"""Any method in a plain training loop: the method as its file gives it, and none of the engine."""

import torch
from torch import nn

from mmrepmtl.engine.methods import build_method
from mmrepmtl.methods.aggregation import GramianAggregator
from mmrepmtl.registry import AGGREGATORS, WEIGHTINGS
from tests.engine.overlays import ready


def flat(grads, parameters):
    pairs = zip(grads, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


class ByHand:
    """Plain gradient descent over windows of micro-batches of a :class:`Masked` model; no regularisers."""

    def __init__(self, model, name: str, lr: float) -> None:
        settings = ready(name)
        assert not settings['regularizers']
        self.model, self.lr, self.log = model, lr, settings['loss_transform'] == 'log'
        self.weighting = build_method(settings['weighting'], WEIGHTINGS)
        self.weighting.setup(3)
        self.aggregator = build_method(settings['aggregator'], AGGREGATORS)
        self.shared, self.heads = list(model.encoder.parameters()), list(model.heads.parameters())
        if self.aggregator is not None:
            self.aggregator.setup(3, [p.numel() for p in self.shared])

    def losses(self, batch):
        """Losses and which are labelled, and Z."""
        captured = []
        hook = self.model.encoder.register_forward_hook(lambda *call: captured.append(call[2]))
        out = self.model(**batch)
        hook.remove()
        losses = [out[f'{task}.loss'] for task in self.model.tasks]
        return losses, torch.stack([out[f'{task}.labelled'] > 0 for task in self.model.tasks]), captured[0]

    def step(self, window) -> None:
        """One optimizer step; each micro-batch counts 1 / their number, whatever it is labelled for."""
        count, split = len(window), 1 if self.aggregator is None else self.aggregator.num_batches
        rows = torch.zeros(split, 3, sum(p.numel() for p in self.shared), dtype=torch.float64)
        heads = torch.zeros(3, sum(p.numel() for p in self.heads), dtype=torch.float64)
        at_z, weighted_heads = torch.zeros_like(rows[0, 0]), torch.zeros_like(heads[0])
        learned = [torch.zeros_like(p) for p in self.weighting.learned()]
        sums_T, counts_T = torch.zeros(3, dtype=torch.float64), torch.zeros(3)
        for i, batch in enumerate(window):
            objectives, labelled_T, z, own = self.objectives(batch, i == count - 1)
            grads = [
                torch.autograd.grad(o / count, self.shared + self.heads, retain_graph=True, allow_unused=True)
                for o in objectives
            ]
            mine = torch.stack([flat(g[len(self.shared) :], self.heads) for g in grads])
            for t, g in enumerate(grads):
                rows[i % split, t] += flat(g[: len(self.shared)], self.shared)
            for total, g in zip(learned, own, strict=True):
                total += g / count
            values_T = torch.stack([o.detach() for o in objectives])
            sums_T, counts_T = sums_T + torch.where(labelled_T, values_T, 0), counts_T + labelled_T
            if self.aggregator is not None and self.aggregator.level == 'representation':
                combined, factors_T = self.combine_at(z, objectives, values_T)
                at_z += flat(torch.autograd.grad(z, self.shared, combined / count), self.shared)
                weighted_heads += (factors_T[:, None] * mine).sum(0)
            heads += mine
        losses_T = sums_T / counts_T.clamp(min=1)
        if self.aggregator is None:
            self.move(rows[0].sum(0), heads.sum(0))
        elif self.aggregator.level == 'representation':
            self.move(at_z, weighted_heads)
        else:
            for j in range(split):  # each the mean over its own micro-batches
                rows[j] *= count / len(range(j, count, split))
            combined_P, weights_T = self.aggregator(rows if split > 1 else rows[0], losses_T)
            self.move(combined_P, (self.factors(weights_T, losses_T)[:, None] * heads).sum(0))
        for p, g in zip(self.weighting.learned(), learned, strict=True):
            p.data -= self.lr * g
        if self.weighting.second_look:
            after = [self.losses(batch)[:2] for batch in window]
            sums_T = sum(torch.where(m, torch.stack(list(v)).detach(), 0) for v, m in after)
            labelled_T = sum(m.int() for _, m in after)
            self.weighting.after_step(sums_T / labelled_T.clamp(min=1), labelled_T > 0)

    def objectives(self, batch, last: bool):
        """Each task's weighted, transformed loss, what is labelled, Z, and the gradients of learned weights."""
        losses, labelled_T, z = self.losses(batch)
        if self.log:
            losses = [loss.log() if yes else 0 * loss for loss, yes in zip(losses, labelled_T, strict=True)]
        leaf_T = torch.stack([loss.detach() for loss in losses]).requires_grad_()
        scalar = self.weighting(leaf_T, labelled_T, last)
        weights_T, *own = torch.autograd.grad(scalar, [leaf_T, *self.weighting.learned()])
        return [w * loss for w, loss in zip(weights_T, losses, strict=True)], labelled_T, z, own

    def combine_at(self, z, objectives, values_T):
        """The combined gradient at Z, and the factors of the heads."""
        grads = torch.stack([torch.autograd.grad(o, z, retain_graph=True)[0] for o in objectives])
        if isinstance(self.aggregator, GramianAggregator):
            combined, weights_T = self.aggregator(grads.flatten(1), values_T)
            return combined.view_as(z), self.factors(weights_T, values_T)
        return self.aggregator.at_representation(grads, z.detach(), lambda value: value), torch.ones(3)

    def factors(self, weights_T, losses_T):
        found = self.aggregator.head_weights(weights_T, losses_T)
        return torch.ones(3) if found is None else found

    def move(self, shared_P, heads_P) -> None:
        for parameters, direction in ((self.shared, shared_P), (self.heads, heads_P)):
            vector = nn.utils.parameters_to_vector(parameters).detach()
            nn.utils.vector_to_parameters(vector - self.lr * direction, parameters)
