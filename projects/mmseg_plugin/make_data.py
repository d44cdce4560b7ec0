#!/usr/bin/env python
"""Writes a small data set of rendered rooms in the layout of mmseg: images, label PNGs, 16-bit depth PNGs (mm)."""

import argparse
from pathlib import Path

import cv2
import numpy as np

from mmrepmtl.datasets import SynthRoomsDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', nargs='?', default='data/rooms', type=Path, help='folder (default: data/rooms)')
    parser.add_argument('--size', nargs=2, type=int, default=(96, 128), metavar=('H', 'W'))
    parser.add_argument('--train', type=int, default=200, help='training images')
    parser.add_argument('--val', type=int, default=50, help='validation images')
    args = parser.parse_args()
    for split, count in (('train', args.train), ('val', args.val)):
        rooms = SynthRoomsDataset(size=args.size, num_samples=count, split=split)
        for kind in ('images', 'labels', 'depth'):
            (args.out / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            room = rooms.load_sample(dict(room=index))
            pictures = dict(
                images=np.rint(255 * room['img'][..., ::-1]).astype(np.uint8),  # cv2 writes BGR
                labels=room['gt']['semseg'].astype(np.uint8),
                depth=np.rint(1000 * room['gt']['depth'].squeeze()).astype(np.uint16),
            )
            for kind, picture in pictures.items():
                cv2.imwrite(str(args.out / kind / split / f'{index:04d}.png'), picture)
    print(f'{args.train} + {args.val} rooms in {args.out}')


if __name__ == '__main__':
    main()
