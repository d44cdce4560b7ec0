"""Office-31 and Office-Home with a few images, in the true layouts."""

from pathlib import Path

import cv2
import numpy as np

# Label ids are not alphabetical, as in the published lists.
CLASSES = ('mug', 'bike', 'desk_lamp')
OFFICE31 = dict(amazon=(12, 6, 6), dslr=(5, 3, 3), webcam=(7, 3, 4))
OFFICE_HOME = dict(Art=(4, 3, 3), Clipart=(3, 3, 3), Product=(5, 3, 3), Real_World=(3, 3, 3))
SPLITS = ('train', 'val', 'test')


def image(domain, label, number):
    """(20, 24, 3) uint8 RGB, smooth, so that JPEG keeps it."""
    rng = np.random.default_rng([*domain.encode(), label, number])
    coarse = rng.integers(40, 216, size=(3, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (24, 20), interpolation=cv2.INTER_LINEAR)


def entries(counts=OFFICE31, inner=('images',)):
    """{(domain, split): [(path, label, number)]}; each class occurs in each split."""
    lists = {}
    for domain, sizes in counts.items():
        number = 0
        for split, size in zip(SPLITS, sizes, strict=True):
            part = lists[domain, split] = []
            for i in range(size):
                label = i % len(CLASSES)
                path = '/'.join((domain, *inner, CLASSES[label], f'frame_{number:04d}.jpg'))
                part.append((path, label, number))
                number += 1
    return lists


def write_images(root, lists, rename=None):
    for (domain, _), part in lists.items():
        for path, label, number in part:
            folder, _, rest = path.partition('/')
            file = Path(root, (rename or {}).get(folder, folder), rest)
            file.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(file), image(domain, label, number)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])


def write_lists(folder, lists):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for (domain, split), part in lists.items():
        text = ''.join(f'{path} {label}\n' for path, label, _ in part)
        Path(folder, f'{domain}_{split}.txt').write_text(text)


def write_office31(root, counts=OFFICE31):
    lists = entries(counts)
    write_images(root, lists)
    write_lists(Path(root, 'splits'), lists)
    return lists


def write_office_home(root):
    """With the official folder name, which holds a space."""
    lists = entries(OFFICE_HOME, ())
    write_images(root, lists, dict(Real_World='Real World'))
    write_lists(Path(root, 'splits'), lists)
    return lists
