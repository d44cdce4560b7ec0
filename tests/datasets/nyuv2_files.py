"""A small file in the format of NYUv2's official download, made of rendered rooms."""

from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

from mmrepmtl.datasets.synth import render_room, sample_room

SIZE = (60, 80)
COUNT = 5
SPLITS = dict(train=(5, 1), val=(3, 2, 4))  # official ids, from 1, in no order
FOV = 2 * np.arctan(320 / 518.86)  # the Kinect's, so that its intrinsics fit the rendered rooms


def make_image(number):
    """Image (H, W, 3) uint8, labels (H, W) 0 to 894, depth (H, W) float32 metres, analytic normals (H, W, 3)."""
    scene = sample_room(np.random.Generator(np.random.PCG64(number)))
    camera = type(scene.camera)(**{**vars(scene.camera), 'fov': FOV})
    picture = render_room(type(scene)(**{**vars(scene), 'camera': camera}), SIZE)
    rng = np.random.default_rng(number)
    labels = rng.integers(0, 895, size=(6, 8)).repeat(10, 0).repeat(10, 1).astype(np.uint16)
    labels[:2] = 0
    image = np.round(picture.image * 255).astype(np.uint8)
    return dict(image=image, labels=labels, depth=picture.depth, normal=picture.normal)


def mappings():
    """894 -> 40 and 40 -> 13, both from 1; 0 is no class."""
    rng = np.random.default_rng(7)
    to_40 = rng.integers(1, 41, size=894)
    to_13 = rng.permutation(np.arange(40) % 14)
    return to_40, to_13


def expected_label(labels):
    """13 classes from 0, 255 void, one pixel at a time."""
    to_40, to_13 = mappings()
    out = np.full(labels.shape, 255)
    for index, label in np.ndenumerate(labels):
        if label and to_13[to_40[label - 1] - 1]:
            out[index] = to_13[to_40[label - 1] - 1] - 1
    return out


def write_labelled_mat(path, images, transposed=False):
    """MATLAB 7.3: HDF5 behind a block of 512 bytes, all axes reversed (``transposed``: wrongly not)."""
    axes = (lambda array: np.moveaxis(array, 2, 0) if array.ndim == 3 else array) if transposed else np.transpose
    with h5py.File(path, 'w', userblock_size=512) as file:
        for name, key in dict(images='image', depths='depth', labels='labels').items():
            stack = np.stack([axes(image[key]) for image in images])
            file.create_dataset(name, data=stack, chunks=(1, *stack.shape[1:]), compression='gzip')
        file.create_dataset('#refs#/a', data=np.zeros(3))


def write_official(folder, images=None):
    """The four files of the official download."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_labelled_mat(folder / 'nyu_depth_v2_labeled.mat', images or [make_image(i + 1) for i in range(COUNT)])
    to_40, to_13 = mappings()
    names = np.array([[f'class {i}' for i in range(40)]], dtype=object)
    savemat(folder / 'classMapping40.mat', dict(
        mapClass=to_40[None].astype(np.float64), className=names,
        allClassName=np.array([[f'label {i}' for i in range(894)]], dtype=object)))  # fmt: skip
    savemat(folder / 'class13Mapping.mat', dict(classMapping13=dict(
        labels13=to_13[None].astype(np.uint8), labelNames=names[:, :13])))  # fmt: skip
    savemat(folder / 'splits.mat', dict(
        trainNdxs=np.array(SPLITS['train'])[:, None], testNdxs=np.array(SPLITS['val'])[:, None]))  # fmt: skip
