"""Draws what Rep-MTL sees of a model: each task's saliency over the images, the ownership map and CSA's similarities.

An IMAGE is a file, or indices of a split of the config's data set, such as val:0,5,7, whose targets are then used.
A file has no ground truth: the targets are the model's own predictions on its mirror image, and the picture says so.
All images form one batch.

    mmrepmtl saliency CONFIG CHECKPOINT val:0,5,7,9 --compare OTHER_CHECKPOINT
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from mmrepmtl.analysis.saliency_maps import SaliencyMaps, SaliencySettings, mirrored_targets, saliency_maps
from mmrepmtl.analysis.saliency_sheet import saliency_sheet
from mmrepmtl.apis import load_config
from mmrepmtl.apis.image_pipeline import ImagePipeline
from mmrepmtl.apis.loading import load_model, target_declarations
from mmrepmtl.apis.splits import dataset_of, picture_dataset
from mmrepmtl.cli.arguments import add_config, add_config_options, add_device, add_trust
from mmrepmtl.datasets.readers import read_picture_image
from mmrepmtl.registry import DATASETS
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.utils.command import in_one_line
from mmrepmtl.utils.device import device_argument
from mmrepmtl.utils.folders import check_writable
from mmrepmtl.visualization import write_picture
from mmrepmtl.visualization.draw import check_format, to_picture

#: (caption, image (3, h, w), sample with its targets or None where there is no ground truth)
Item = tuple[str, Tensor, MultiTaskDataSample | None]


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument('checkpoint')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='a file, or SPLIT:INDEX,INDEX,...')
    parser.add_argument('--compare', metavar='CHECKPOINT', help='a second model of the same config, drawn beside it')
    parser.add_argument('--out', default='saliency.png', help='the picture (default: saliency.png)')
    add_device(parser, device_argument)
    add_trust(parser, several=True)
    add_config_options(parser)
    return parser.parse_args(argv)


def read_items(cfg: Config, images: list[str]) -> list[Item]:
    """The images, in order, as the test pipeline of the config makes them."""
    items: list[Item] = []
    pipeline = None
    for image in images:
        split = re.fullmatch(r'(train|val|test):(\d+(?:,\d+)*)', image)
        if split is None:
            pipeline = pipeline or ImagePipeline(cfg)
            items.append((Path(image).name, pipeline(read_picture_image(image), image).inputs, None))
            continue
        dataset = DATASETS.build(
            dict(
                dataset_of(cfg, split[1], f'saliency of {image}'),
                pipeline=picture_dataset(cfg, 'saliency').get('pipeline', []),
                test_mode=True,
            )
        )
        for index in map(int, split[2].split(',')):
            if index >= len(dataset):
                raise ValueError(f'{image}: the split {split[1]!r} has {len(dataset)} images, so there is no {index}')
            data = dataset[index]
            items.append((f'{split[1]} {index}', data['inputs'], data['data_samples']))
    return items


def describe(state: Mapping[str, Any], checkpoint: str) -> str:
    """The method that a checkpoint was trained with, as it says itself, and its file."""
    path = Path(checkpoint)
    name = f'{path.parent.name}/{path.name}'
    saved = state.get('optimizer', {}).get('multi_task')
    if saved is None:
        return name
    signature = json.loads(saved['signature'])
    parts = [part['type'] for part in (signature['weighting'], signature['aggregator']) if part]
    if signature['loss_transform'] == 'log':
        parts[0] += ' of log losses'
    for regularizer in signature['regularizers']:
        weights = [f'{key[7:]} {value:g}' for key, value in regularizer.items() if key.startswith('lambda_')]
        parts.append(f'{regularizer["type"]} ({", ".join(weights)})' if weights else regularizer['type'])
    return f'{" + ".join(parts)}: {name}'


def maps_of(
    cfg: Config, args: argparse.Namespace, checkpoint: str, items: list[Item]
) -> tuple[str, list[SaliencyMaps]]:
    """Title and maps, one for each level of Z, of one model."""
    model, state = load_model(cfg, checkpoint, args.device, args.trust_checkpoint)
    plain = [image for _, image, sample in items if sample is None]
    stand_ins = iter(mirrored_targets(model, plain, target_declarations(cfg, state)) if plain else [])
    samples = [next(stand_ins) if sample is None else sample for _, _, sample in items]
    maps = saliency_maps(model, [image for _, image, _ in items], samples, SaliencySettings.of(cfg))
    return describe(state, checkpoint), maps


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    args = parse_args(argv, prog)
    check_format(args.out)
    check_writable(Path(args.out).parent)
    cfg = load_config(args.config, data_root=args.data_root, cfg_options=args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    items = read_items(cfg, args.images)
    runs = [maps_of(cfg, args, checkpoint, items) for checkpoint in (args.checkpoint, args.compare) if checkpoint]
    pictures = [to_picture(image, MultiTaskDataSample()) for _, image, _ in items]
    captions = [(name, 'target: truth' if sample else 'no truth: own prediction') for name, _, sample in items]
    settings = SaliencySettings.of(cfg)
    loss = 'log L' if settings.transform == 'log' else 'L'
    notes = [
        f'|s|: magnitude of the channel mean of d {loss} / dZ, Z = output of {settings.shared!r}, in evaluation mode; '
        'each panel from 0 to its own maximum',
    ]
    if any(sample is None for *_, sample in items):
        notes.append(
            '"no truth": the targets are what the model itself predicts on the mirrored image, mirrored back; such a '
            'saliency shows disagreement with itself, not error'
        )
    path = Path(args.out)
    levels = len(runs[0][1])
    for level in range(levels):
        file = path if levels == 1 else path.with_name(f'{path.stem}_level{level}{path.suffix}')
        titled = {f'{"AB"[number]}: {title}': maps[level] for number, (title, maps) in enumerate(runs)}
        write_picture(file, saliency_sheet(pictures, captions, titled, notes))
        print(f'saliency: {file}')
    for title, maps in runs:
        shares = ', '.join(f'{task} {float(s):.2f}' for task, s in zip(maps[0].tasks, maps[0].share_T, strict=True))
        off_diagonal = maps[0].anchor_BB[~np.eye(len(maps[0].anchor_BB), dtype=bool)]
        negative = f'{float(off_diagonal.nanmean()):.3f}' if len(off_diagonal) else 'none (one image)'
        print(
            f'{title}: entropy / ln T {maps[0].entropy:.3f}, shares {shares}; mean positive similarity '
            f'{float(maps[0].affinity_BT.nanmean()):.3f}, negative {negative}'
        )
