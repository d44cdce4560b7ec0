"""Small own data sets on disk: files of every kind with known contents, for the tests of the generic data sets."""

import csv
from pathlib import Path

import cv2
import numpy as np

SIZE = (16, 20)
CLASSES = ['wall', 'floor', 'bed']


def make_sample(number: int) -> dict:
    """Arrays of a sample, in the formats of ``MultiTaskDataset``."""
    rng = np.random.default_rng(number)
    normal = rng.normal(size=(*SIZE, 3)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[0] = 0
    semseg = rng.integers(0, 3, SIZE)
    semseg[0] = 255
    return dict(
        image=rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        semseg=semseg,
        edge=rng.integers(0, 2, SIZE),
        depth=rng.integers(0, 5000, SIZE).astype(np.uint16),
        normal=normal,
        scene=number % 2,
        pose=np.array([number, -0.5 * number], np.float32),
    )


def write(path: Path, array: np.ndarray) -> Path:
    """Writes a picture (RGB) or a .npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npy':
        np.save(path, array)
    else:
        assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)
    return path


def write_folders(root: Path, names: list[str]) -> dict[str, dict]:
    """One folder per modality; returns {name: sample}."""
    samples = {}
    for number, name in enumerate(names):
        sample = samples[name] = make_sample(number)
        write(root / f'images/{name}.png', sample['image'])
        write(root / f'masks/{name}.png', sample['semseg'].astype(np.uint8))
        write(root / f'edges/{name}_edge.png', (255 * sample['edge']).astype(np.uint8))
        write(root / f'depth/{name}.png', sample['depth'])
        write(root / f'normals/{name}.npy', sample['normal'])
        for kind, text in (('scene', ['office', 'kitchen'][sample['scene']]), ('pose', f'{number} {-0.5 * number}\n')):
            path = root / kind / f'{name}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return samples


def write_table(path: Path, rows: list[dict], delimiter: str = ',') -> Path:
    """A CSV file with the columns of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path
