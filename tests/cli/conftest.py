from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.cli.harness import CLASSES, SHORT, run


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv('LOCAL_RANK', '0')  # the commands set it


@pytest.fixture(scope='session')
def trained(tmp_path_factory) -> Path:
    """The work directory of a run of the config of classes."""
    folder = tmp_path_factory.mktemp('classes')
    torch.set_num_threads(1)
    run('train', CLASSES, '--work-dir', folder, options=SHORT)
    return folder


@pytest.fixture(scope='session')
def picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp('pictures') / 'mine.png'
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    return file
