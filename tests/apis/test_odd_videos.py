"""Videos that are damaged, turned, large or not one at all, among pictures."""

import gc
import os
import re
import weakref

import numpy as np
import pytest

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.apis.inputs import find_inputs
from tests.apis.harness import read_frames, write_video
from tests.apis.odd_files import save
from tests.apis.toy import picture


def test_a_folder_of_pictures_and_videos(tool, inferencer, tmp_path, capsys):
    folder = tmp_path / 'in'
    save(folder / 'a.png')
    save(folder / 'clip.png')
    write_video(folder / 'clip.avi', [picture((48, 64), seed) for seed in range(3)])
    write_video(folder / 'wide%03d.avi', [picture((32, 64), seed) for seed in range(2)])
    (folder / 'none.mp4').write_bytes(b'no video')
    (folder / 'empty.mkv').touch()
    assert [source.count for source in find_inputs(folder)] == [1, 3, 1, 1, 1, 2]
    assert tool(folder, '--out-dir', tmp_path / 'out', '--batch-size', 4) == 1
    out = capsys.readouterr().out
    assert '7 predicted, 2 failed' in out and out.count('cannot be read as a video') == 2
    sheets = sorted(path.name for path in (tmp_path / 'out/visualization').iterdir())
    assert sheets == ['a.png', 'clip.mp4', 'clip_2.png', 'wide%03d.mp4']
    assert len(read_frames(tmp_path / 'out/visualization/clip.mp4')) == 3


@pytest.mark.parametrize('code, ending', [('mp4v', 'mp4'), ('MJPG', 'avi'), ('FFV1', 'avi'), ('mp4v', 'mkv')])
def test_a_video_that_is_damaged_inside_is_named(inferencer, tmp_path, capfd, code, ending):
    path = write_video(tmp_path / f'clip.{ending}', [picture((48, 64), seed) for seed in range(40)], code)
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 300] = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    *frames, last = inferencer(path)
    assert frames and all(result.error is None for result in frames)
    assert re.match('the video (is damaged near frame|ends after) ', last.error)
    assert ' @ 0x' not in capfd.readouterr().err


def test_a_video_turned_by_its_header(inferencer, tmp_path):
    path = write_video(tmp_path / 'clip.mp4', [picture((48, 64), seed) for seed in range(3)], 'mp4v')
    content = bytearray(path.read_bytes())
    place = content.index(b'tkhd') + 4 + 40  # the matrix of a version 0 header
    turn = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    content[place : place + 36] = b''.join(number.to_bytes(4, 'big', signed=True) for number in turn)
    path.write_bytes(content)
    assert [result.size for result in inferencer(path)] == [(64, 48)] * 3


def test_a_video_whose_name_is_no_text(inferencer, tmp_path):
    path = write_video(tmp_path / 'clip.avi', [picture((48, 64))])
    odd = os.path.join(os.fsencode(tmp_path), b'cl\xffip\n.avi')
    os.rename(path, odd)
    (result,) = inferencer(os.fsdecode(odd), out_dir=tmp_path / 'out')
    assert result.error is None and result.files['visualization'].name == 'cl_ip_.mp4'


def test_frames_that_are_too_large(run, tmp_path):
    path = write_video(tmp_path / 'clip.avi', [picture((48, 64))])
    (result,) = MultiTaskInferencer(*run, device='cpu', max_pixels=3000)(path)
    assert result.error == 'frames of 64 x 48 pixels, at most 3000 pixels are taken'


def test_a_long_video_holds_one_batch(inferencer, tmp_path):
    """All frames but those of the batch that is worked on are gone: nothing refers to them any more."""
    path = write_video(tmp_path / 'clip.avi', [picture((48, 64), seed % 5) for seed in range(30)], 'MJPG')
    alive = []
    for result in inferencer.stream(path, batch_size=4, out_dir=tmp_path / 'out'):
        alive.append(weakref.ref(result.image))
        gc.collect()
        assert sum(reference() is not None for reference in alive) <= 9
    assert len(alive) == 30


def test_sheets_go_into_pictures_where_opencv_writes_no_video(inferencer, tmp_path, monkeypatch):
    path = write_video(tmp_path / 'clip.avi', [picture((48, 64), seed) for seed in range(2)])

    class NoWriter:
        def __init__(self, *_):
            pass

        def isOpened(self):
            return False

    monkeypatch.setattr('mmrepmtl.apis.sheet_video.cv2.VideoWriter', NoWriter)
    results = inferencer(path, out_dir=tmp_path / 'out')
    assert all(result.error is None and result.files['visualization'].is_file() for result in results)
    assert os.listdir(tmp_path / 'out/visualization') == ['clip']
