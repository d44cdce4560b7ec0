"""A small multi-task model and its batches, in mmengine's form and as plain functions."""

import torch
from mmengine.model import BaseModel
from torch import nn


class Identity(nn.Module):
    """Stands for mmengine's data preprocessor: the batch is used as it is."""

    def forward(self, data, training=False):
        return data


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, channels, 1))


class ToyModel(BaseModel):
    """Encoder of two convolutions, a classification-like and two regression-like dense heads; no BatchNorm, no
    dropout."""

    tasks = ('a', 'b', 'c')

    def __init__(self) -> None:
        super().__init__()
        self.data_preprocessor = Identity()
        self.encoder = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 3, padding=1), nn.Tanh())
        self.heads = nn.ModuleDict(dict(a=head(3), b=head(1), c=head(2)))

    def losses(self, inputs, a, b, c):
        z = self.encoder(inputs)
        return dict(
            a=nn.functional.cross_entropy(self.heads['a'](z), a),
            b=(self.heads['b'](z) - b).abs().mean(),
            c=((self.heads['c'](z) - c) ** 2).mean(),
        )

    def forward(self, inputs, a, b, c, mode='loss'):
        assert mode == 'loss'
        return {f'{task}.loss': loss for task, loss in self.losses(inputs, a, b, c).items()}


def make_model(seed: int = 0, dtype=torch.float64, cls=ToyModel) -> ToyModel:
    torch.manual_seed(seed)
    return cls().to(dtype)


def make_batch(size: int = 4, seed: int = 0, dtype=torch.float64) -> dict:
    g = torch.Generator().manual_seed(seed)
    return dict(
        inputs=torch.randn(size, 3, 6, 5, generator=g, dtype=torch.float64).to(dtype),
        a=torch.randint(0, 3, (size, 6, 5), generator=g),
        b=torch.randn(size, 1, 6, 5, generator=g, dtype=torch.float64).to(dtype),
        c=torch.randn(size, 2, 6, 5, generator=g, dtype=torch.float64).to(dtype),
    )


def split(batch: dict, sizes) -> list[dict]:
    parts = {key: value.split(sizes) for key, value in batch.items()}
    return [{key: parts[key][i] for key in parts} for i in range(len(sizes))]


def max_difference(model, other) -> float:
    """Largest parameter difference relative to the largest parameter."""
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    largest = max(float(p.detach().abs().max()) for p, _ in pairs)
    return max(float((p - q).detach().abs().max()) for p, q in pairs) / largest


class Masked(ToyModel):
    """Each sample says in ``has`` which tasks it is labelled for; losses are means over the labelled samples of all
    ranks, as this package's own models make them."""

    def sample_losses(self, inputs, a, b, c):
        """The loss of each sample, (B,) for each task."""
        z = self.encoder(inputs)
        return dict(
            a=nn.functional.cross_entropy(self.heads['a'](z), a, reduction='none').flatten(1).mean(1),
            b=(self.heads['b'](z) - b).abs().flatten(1).mean(1),
            c=((self.heads['c'](z) - c) ** 2).flatten(1).mean(1),
        )

    def forward(self, inputs, a, b, c, has, mode='loss'):
        assert mode == 'loss'
        counts, world = has.sum(0), 1
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            world = torch.distributed.get_world_size()
        found = {}
        for t, (task, losses) in enumerate(self.sample_losses(inputs, a, b, c).items()):
            found[f'{task}.loss'] = (losses * has[:, t]).sum() * world / counts[t].clamp(min=1)
            found[f'{task}.labelled'] = (counts[t] > 0).float()
        return found


def masked_batch(size: int = 8, seed: int = 0, dtype=torch.float64) -> dict:
    """In turn: all labels; b in the first half only; no b; all labels; a in the last quarter only."""
    has = torch.ones(size, 3, dtype=dtype)
    if seed % 5 == 1:
        has[size // 2 :, 1] = 0
    elif seed % 5 == 2:
        has[:, 1] = 0
    elif seed % 5 == 4:
        has[: -(size // 4), 0] = 0
    return make_batch(size, seed, dtype) | dict(has=has)


class OwnSamples(ToyModel):
    """Every task has samples of its own: the batch's parts in the order of the tasks, 3, 4 and 2 of 9."""

    sizes = dict(a=3, b=4, c=2)

    def __init__(self) -> None:
        super().__init__()
        self.encoder_forward = 'per_task'
        self.task_slices = None

    def losses(self, inputs, a, b, c):
        targets, start, slices = dict(a=a, b=b, c=c), 0, {}
        for task, size in self.sizes.items():
            slices[task] = slice(start, start + size)
            start += size
        if self.encoder_forward == 'per_task':
            z = {task: self.encoder(inputs[rows]) for task, rows in slices.items()}
        else:
            self.task_slices, joint = slices, self.encoder(inputs)
            z = {task: joint[rows] for task, rows in slices.items()}
        out = {task: self.heads[task](z[task]) for task in self.tasks}
        return dict(
            a=nn.functional.cross_entropy(out['a'], a[slices['a']]),
            b=(out['b'] - targets['b'][slices['b']]).abs().mean(),
            c=((out['c'] - targets['c'][slices['c']]) ** 2).mean(),
        )


class Partial(ToyModel):
    """Tasks whose labels are all missing: a zero that is connected to the graph, and the flag."""

    missing = ()

    def forward(self, inputs, a, b, c, mode='loss'):
        out = super().forward(inputs, a, b, c)
        for task in self.missing:
            out[f'{task}.loss'] = out[f'{task}.loss'] * 0
        return out | {f'{task}.labelled': torch.tensor(float(task not in self.missing)) for task in self.tasks}


NAN = float('nan')


class Poisoned(torch.autograd.Function):
    """The identity, whose gradient is not a number where the batch says so."""

    @staticmethod
    def forward(ctx, x, poison):
        ctx.poison = poison
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (NAN if ctx.poison else 1.0), None


class BadGradient(ToyModel):
    """If c begins with 7, the gradient of head b's bias (``where='head'``) or of task b at Z is not finite."""

    where = 'head'

    def losses(self, inputs, a, b, c):
        poison = bool(c.flatten()[0] == 7)
        z = self.encoder(inputs)
        first, *others = self.heads['b']
        if self.where == 'head':
            out = nn.functional.conv2d(z, first.weight, Poisoned.apply(first.bias, poison), padding=1)
        else:
            out = first(Poisoned.apply(z, poison))
        for module in others:
            out = module(out)
        return dict(
            a=nn.functional.cross_entropy(self.heads['a'](z), a),
            b=(out - b).abs().mean(),
            c=((self.heads['c'](z) - c) ** 2).mean(),
        )


def bad_batch(seed=9):
    batch = make_batch(seed=seed)
    batch['c'].view(-1)[0] = 7
    return batch
