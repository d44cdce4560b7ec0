#!/usr/bin/env python
"""Trains methods on drawn faces whose tasks have losses of very different size, beside the best constant.

Every face has an age (years 0 to 100, not standardised, mean absolute error), one of 2 and one of 5 classes. At the
start the loss of the age is about 50, those of the classes are 0.7 and 1.6.

python tools/analysis_tools/benchmark_unbalanced.py --methods ew-log rep-mtl rep-mtl-paper --seeds 3
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from mmrepmtl.engine import MultiTaskOptimWrapper

METHODS = Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'methods'
CLASSES = dict(gender=2, race=5)


def draw_faces(count: int, size: int, seed: int) -> dict[str, Tensor]:
    """Faces and their labels.

    Args:
        count: Number B of faces.
        size: Height and width of the images, pixels.
        seed: Of all that is random.

    Returns:
        ``inputs`` (B, 3, size, size), ``age`` (B,) in years, ``gender`` and ``race`` (B,) class indices.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    age, gender = 100 * uniform(count), torch.randint(2, (count,), generator=generator)
    race = torch.randint(5, (count,), generator=generator)
    axis = torch.linspace(-1, 1, size)
    y, x = axis[None, :, None] - 0.4 * uniform(count, 1, 1) + 0.2, axis[None, None] - 0.4 * uniform(count, 1, 1) + 0.2
    # The class of 2 is the form of the face, that of 5 its colour, and the age the depth of its wrinkles.
    ratio = torch.where(gender == 0, 0.75, 1.25)[:, None, None]
    face = torch.sigmoid(12 * (0.7 - (x**2 * ratio + y**2 / ratio).sqrt()))
    colours = torch.tensor([[1.0, 0.7, 0.5], [0.8, 0.8, 0.4], [0.5, 0.4, 0.9], [0.4, 0.8, 0.6], [0.8, 0.4, 0.7]])
    phase = 6.3 * uniform(count, 1, 1)
    wrinkles = 0.8 * (age / 100)[:, None, None] * torch.sin(25 * y + phase)
    colour = colours[race] + 0.1 * torch.randn(count, 3, generator=generator)
    images = colour[:, :, None, None] * (face * (0.8 + wrinkles))[:, None]
    images = images + 0.1 * torch.randn(count, 3, size, size, generator=generator)
    labels = dict(gender=gender, race=race)
    for task, classes in CLASSES.items():  # one label in ten is drawn, so that no loss falls to 0
        drawn = torch.randint(classes, (count,), generator=generator)
        labels[task] = torch.where(uniform(count) < 0.1, drawn, labels[task])
    return dict(inputs=2 * images - 1, age=age, **labels)


class FaceModel(BaseModel):
    """A small convolutional encoder, and for each task a head of two layers on its pooled map."""

    tasks = ('age', *CLASSES)

    def __init__(self, channels: Sequence[int] = (16, 32, 48)) -> None:
        super().__init__()
        self.data_preprocessor = None
        widths = [3, *channels]
        layers: list[nn.Module] = []
        for here, there in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(here, there, 3, 2, 1, bias=False), nn.BatchNorm2d(there), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 32), nn.ReLU(), nn.Linear(32, outputs)
                )
                for task, outputs in dict(age=1, **CLASSES).items()
            }
        )

    def predict(self, inputs: Tensor) -> dict[str, Tensor]:
        """The age (B,) in years and the logits (B, classes) of each image."""
        z = self.encoder(inputs)
        found = {task: head(z) for task, head in self.heads.items()}
        return found | dict(age=found['age'].flatten())

    def forward(self, inputs: Tensor, mode: str = 'loss', **labels: Tensor) -> dict[str, Tensor]:
        """The loss of each task."""
        found = self.predict(inputs)
        losses = {f'{task}.loss': functional.cross_entropy(found[task], labels[task]) for task in CLASSES}
        return {'age.loss': (found['age'] - labels['age']).abs().mean()} | losses


def train(method: str, faces: dict[str, Tensor], epochs: int, batch: int, lr: float, seed: int) -> FaceModel:
    """Trains a model by an overlay of ``configs/_base_/methods``, with Adam and a rate that falls to 0."""
    torch.manual_seed(seed)
    model = FaceModel()
    settings = Config.fromfile(METHODS / f'{method}.py').to_dict()['optim_wrapper']
    settings.pop('type')
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', **settings)
    count = len(faces['age'])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (count // batch))
    for _ in range(epochs):
        for rows in torch.randperm(count)[: count // batch * batch].split(batch):
            with wrapper.optim_context(model):
                losses = model(**{name: values[rows] for name, values in faces.items()}, mode='loss')
            wrapper.update_params(losses['loss'])
            schedule.step()
    return model.eval()


@torch.no_grad()
def errors(model: FaceModel, faces: dict[str, Tensor]) -> dict[str, float]:
    """Mean absolute error of the age in years, and the share of wrong classes in %."""
    parts = [model.predict(inputs) for inputs in faces['inputs'].split(250)]
    found = {task: torch.cat([part[task] for part in parts]) for task in parts[0]}
    wrong = {task: 100 * (found[task].argmax(1) != faces[task]).float().mean().item() for task in CLASSES}
    return dict(age=(found['age'] - faces['age']).abs().mean().item(), **wrong)


def constant_errors(train_faces: dict[str, Tensor], faces: dict[str, Tensor]) -> dict[str, float]:
    """The same of the best constant of the training set: the median age, the most frequent class."""
    wrong = {task: 100 * (train_faces[task].mode().values != faces[task]).float().mean().item() for task in CLASSES}
    return dict(age=(train_faces['age'].median() - faces['age']).abs().mean().item(), **wrong)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table: a row for each method and seed, on faces that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--methods', nargs='+', default=['ew-log', 'rep-mtl', 'rep-mtl-paper'], help='overlays')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--samples', type=int, default=2000, help='faces to train on; half as many are tested')
    parser.add_argument('--size', type=int, default=64, help='pixels')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--lr', type=float, default=3e-3)
    args = parser.parse_args(argv)
    print('| method | seed | age, MAE | gender, % wrong | race, % wrong | s |\n|---|---|---|---|---|---|')
    for seed in range(args.seeds):
        own, other = (draw_faces(n, args.size, 2 * seed + i) for i, n in enumerate((args.samples, args.samples // 2)))
        rows = {'best constant': (constant_errors(own, other), 0.0)}
        for method in args.methods:
            start = time.perf_counter()
            model = train(method, own, args.epochs, args.batch, args.lr, seed)
            rows[f'`{method}`'] = errors(model, other), time.perf_counter() - start
        for name, (found, seconds) in rows.items():
            numbers = ' | '.join(f'{found[task]:.1f}' for task in FaceModel.tasks)
            print(f'| {name} | {seed} | {numbers} | {seconds:.0f} |', flush=True)


if __name__ == '__main__':
    main()
