"""A few images in the layout of the PASCAL-Context archive, as plain arrays and as files."""

import json

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from mmrepmtl.datasets.pascal_context import voc_palette

IDS = dict(train=('2008_000002', '2008_000009', '2009_000015', '2010_001000'), val=('2008_000003', '2010_000004'))
# The people in an image; the other images hold an object of another class, or nothing.
PEOPLE = {'2008_000009': 'two', '2010_001000': 'partless', '2008_000003': 'two', '2009_000015': 'nothing'}
VOC12 = ('2008_000002', '2010_000004')
# A valid class for normals (chair), 'unknown' and a class that NYUv2 has not (aeroplane).
LABELS = (72, 431, 2, 284)


def size_of(name):
    return (24, 30) if name.endswith(('2', '4')) else (28, 21)


def make_raw(name):
    """The content of one image's files, as plain arrays."""
    rng = np.random.default_rng(list(name.encode()))
    size = height, width = size_of(name)
    labels = np.zeros(size, np.uint16)
    for number in range(5):
        y, x = rng.integers(0, height - 6), rng.integers(0, width - 6)
        labels[y : y + rng.integers(4, 14), x : x + rng.integers(4, 14)] = LABELS[number % 4]
    normals = rng.standard_normal((*size, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    coded = np.round((normals + 1) * 127.5).astype(np.uint8)
    coded[0, :3] = 0  # a direction like any other
    labels[0, :3] = 72
    semseg = rng.integers(0, 21, size).astype(np.uint8)
    semseg[:2] = 255
    image = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3)).astype(np.uint8), (0, 0), 3)
    return dict(image=image, labels=labels, coded=coded, semseg=semseg, sal=rng.integers(0, 256, size).astype(np.uint8))


def people_of(name):
    """[(class, mask, [(part, mask)])] of an image's objects."""
    size = size_of(name)

    def box(y, x, height=5, width=6):
        mask = np.zeros(size, np.uint8)
        mask[y : y + height, x : x + width] = 1
        return mask

    first = [('head', box(1, 2)), ('neck', box(6, 2, 2)), ('luarm', box(8, 1)), ('rhand', box(8, 4))]
    first.append(('lfoot', box(15, 3)))
    second = [('torso', box(3, 4)), ('ruleg', box(9, 9)), ('nose', box(2, 5, 2, 2))]
    dog = (12, box(0, 0), [('head', box(10, 10))])
    two = [(15, box(0, 0, 20, 12), first), dog, (15, box(3, 3), second)]
    kinds = dict(two=two, partless=[dog, (15, box(1, 1), [])], nothing=[])
    return kinds.get(PEOPLE.get(name), [dog])


def struct(rows, fields):
    """MATLAB's struct array (1, N)."""
    array = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for index, row in enumerate(rows):
        array[0, index] = tuple(row)
    return array


def save_parts(path, name):
    nothing = np.zeros((0, 0))
    objects = []
    for class_id, mask, parts in people_of(name):
        found = struct(parts, ('part_name', 'mask')) if parts else nothing
        objects.append((f'class {class_id}', float(class_id), mask, found))
    whole = struct(objects, ('class', 'class_ind', 'mask', 'parts')) if objects else nothing
    savemat(path, dict(anno=struct([(name, whole)], ('imname', 'objects'))))


def write_archive(root, with_lists=True):
    def path(*parts):
        file = root.joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    for split, names in IDS.items():
        path('ImageSets', 'Context', f'{split}.txt').write_text('\n'.join(names) + '\n')
        if with_lists:
            listed = {name: [class_id for class_id, _, _ in people_of(name)] for name in names}
            path('ImageSets', 'Parts', f'{split}.txt').write_text(json.dumps(listed))
        for name in names:
            raw = make_raw(name)
            Image.fromarray(raw['image']).save(path('JPEGImages', f'{name}.jpg'), quality=95)
            savemat(path('pascal-context', 'trainval', f'{name}.mat'), dict(LabelMap=raw['labels']))
            save_parts(path('human_parts', f'{name}.mat'), name)
            coloured = Image.fromarray(raw['semseg'], 'P')
            coloured.putpalette([value for row in voc_palette(256) for value in row])
            coloured.save(path('semseg', 'VOC12' if name in VOC12 else 'pascal-context', f'{name}.png'))
            if name in VOC12:  # another one that must not be taken
                Image.fromarray(raw['semseg'] * 0).save(path('semseg', 'pascal-context', f'{name}.png'))
            Image.fromarray(raw['sal']).save(path('sal_distill', f'{name}.png'))
            Image.fromarray(raw['coded']).save(path('normals_distill', f'{name}.png'))
    # The archive holds images of no list, too.
    Image.fromarray(make_raw('2007_000001')['image']).save(path('JPEGImages', '2007_000001.jpg'))
