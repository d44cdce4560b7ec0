"""A few frames in the true layouts of Cityscapes and GTA5, as plain arrays and as files."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# By hand from the official table: labelId -> trainId -> category; what is not here is void.
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18}  # fmt: skip
CATEGORIES = [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6, 6, 6, 6, 6]
SIZE = (32, 64)
FRAMES = dict(train=('aachen_000000_000019', 'aachen_000001_000019', 'ulm_000000_000019'), val=('bonn_000007_000019',))


def make_frame(name, size=SIZE, highest=33):
    """Image (H, W, 3) uint8 RGB, labelIds (H, W) uint8 and raw disparity (H, W) uint16, from the letters of a name."""
    rng = np.random.default_rng(list(name.encode()))
    blocks = rng.integers(0, highest + 1, size=(size[0] // 4, size[1] // 4))
    ids = np.repeat(np.repeat(blocks, 4, 0), 4, 1).astype(np.uint8)
    ids[0, : highest + 1] = np.arange(highest + 1)
    disparity = rng.integers(1, 32258, size=size).astype(np.uint16)
    disparity[:4] = 0
    disparity[4, 0] = 1
    smooth = cv2.GaussianBlur(rng.integers(0, 256, size=(*size, 3)).astype(np.uint8), (0, 0), 3)
    return dict(image=smooth, ids=ids, disparity=disparity)


def classes(ids, num_classes):
    """The slow way from labelIds to 7 or 19 classes."""
    out = np.full(ids.shape, 255)
    for label_id, train_id in TRAIN_IDS.items():
        out[ids == label_id] = train_id if num_classes == 19 else CATEGORIES[train_id]
    return out


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def raw_paths(root, split, name):
    """The official files of a frame."""
    city = name.partition('_')[0]
    parts = dict(
        image=('leftImg8bit', 'leftImg8bit'), ids=('gtFine', 'gtFine_labelIds'), disparity=('disparity', 'disparity')
    )
    return {key: Path(root) / folder / split / city / f'{name}_{end}.png' for key, (folder, end) in parts.items()}


def write_raw_cityscapes(root, frames=None):
    for split, names in (frames or FRAMES).items():
        for name in names:
            frame = make_frame(name)
            for key, path in raw_paths(root, split, name).items():
                write_png(path, frame[key])
            # Files that lie beside them in the official archives.
            labels = raw_paths(root, split, name)['ids']
            write_png(labels.with_name(f'{name}_gtFine_instanceIds.png'), frame['disparity'])


def write_archive(root, label_folders=('label_7', 'label_19'), frames=None):
    """MTAN's archive; ``label`` holds 7 classes."""
    for split, names in (frames or FRAMES).items():
        for i, name in enumerate(names):
            frame = make_frame(name)
            arrays = dict(image=frame['image'] / 255.0, depth=(frame['disparity'] / 65535)[..., None])
            for folder in label_folders:
                label = classes(frame['ids'], 19 if folder == 'label_19' else 7)
                arrays[folder] = np.where(label == 255, -1.0, label)
            for folder, array in arrays.items():
                path = Path(root) / split / folder / f'{i}.npy'
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)


def write_gta5(root, names=('00001', '00002', '00010'), size=SIZE):
    """GTA5's official folders; labels are palette PNGs whose colours are not their numbers."""
    palette = np.random.default_rng(0).integers(0, 256, size=768).tolist()
    for name in names:
        frame = make_frame(name, size, highest=34)
        write_png(Path(root) / 'images' / f'{name}.png', frame['image'])
        picture = Image.fromarray(frame['ids'], mode='P')
        picture.putpalette(palette)
        (Path(root) / 'labels').mkdir(parents=True, exist_ok=True)
        picture.save(Path(root) / 'labels' / f'{name}.png')
