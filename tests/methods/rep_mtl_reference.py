"""TSR and CSA as the paper prints them: C x C matrices, one pair at a time. Nothing of ours is imported."""

import torch
from torch import Tensor, nn


def literal_tsr(saliency: Tensor) -> Tensor:
    """Eq. 4-6."""
    mean = saliency.mean(2).abs()
    total = mean.sum(0, keepdim=True)
    share = mean / torch.where(total == 0, torch.ones_like(total), total)
    used = share[share != 0]
    return -(used * used.log()).sum() / mean[0].numel()


def literal_csa(saliency: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 7-9; exactly zero affinities and anchors take no part."""
    maps = saliency.reshape(*saliency.shape[:3], -1)
    tasks, samples = maps.shape[:2]
    anchors, affinities = [], {}
    for b in range(samples):
        matrix = maps[:, b].mean(-1).T
        anchors.append(flat_unit(matrix @ matrix.T))
        for t in range(tasks):
            affinities[t, b] = flat_unit(maps[t, b] @ maps[t, b].T)
    terms = []
    for b in range(samples):
        others = [k for k in range(samples) if k != b and anchors[k] is not None]
        if anchors[b] is None or not others:
            continue
        negatives = torch.stack([(anchors[b] * anchors[k]).sum() / temperature for k in others])
        for t in range(tasks):
            if affinities[t, b] is not None:
                positive = (anchors[b] * affinities[t, b]).sum() / temperature
                terms.append(-(positive.exp() / negatives.exp().sum()).log())
    return torch.stack(terms).mean() if terms else saliency.sum() * 0


def flat_unit(matrix: Tensor) -> Tensor | None:
    """The matrix as a vector of length 1, None for a zero matrix."""
    vector = matrix.flatten()
    return None if not vector.detach().any() else vector / vector.norm()


class TwoLayerNet(nn.Module):
    """An encoder and three smooth non-linear heads, without normalisation and dropout."""

    def __init__(self, seed: int = 0, channels: int = 5) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, channels, 3, padding=1))
            self.heads = nn.ModuleDict(
                {
                    task: nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 2, 1))
                    for task in ('a', 'b', 'c')
                }
            )

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.encoder(images)
        return z, {task: head(z) for task, head in self.heads.items()}

    def losses(self, images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z, outputs = self(images)
        weights = dict(a=1.0, b=0.3, c=5.0)
        return z, {task: weights[task] * (output - targets).square().mean() for task, output in outputs.items()}


def batch(samples: int = 4, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 4, 5) and targets (B, 2, 4, 5)."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, 3, 4, 5, generator=generator, dtype=dtype),
        torch.randn(samples, 2, 4, 5, generator=generator, dtype=dtype),
    )


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """A copy of each parameter's gradient."""
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def literal_saliency(losses, z, log=True):
    """Eq. 3, of log losses or of losses, in the graph."""
    return torch.stack(
        [torch.autograd.grad(loss, z, create_graph=True)[0] / (loss.detach() if log else 1) for loss in losses.values()]
    )


def literal_penalty(losses, z, log=True, weights=(0.9, 0.9), temperature=1.0):
    """Both terms, weighted."""
    saliency = literal_saliency(losses, z, log)
    return weights[0] * literal_tsr(saliency) + weights[1] * literal_csa(saliency, temperature)


def total(terms):
    """The penalty."""
    return terms['loss_tsr'] + terms['loss_csa']
