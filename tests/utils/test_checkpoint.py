"""The one reader of checkpoints: data comes back as it was, code is named and not run, damage is noticed."""

import argparse
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mmrepmtl.utils.checkpoint import (
    CheckpointError,
    MissingCheckpointError,
    is_trusted,
    load_checkpoint,
    read_checkpoint,
    read_state_dict,
    trust_checkpoints,
)
from tests.utils.payloads import Call, payloads

NAMES = list(payloads(Path('marker')))


def data() -> dict:
    """The content of checkpoints of all kinds."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, 8, 8)).pow(2).sum().backward()
    optimizer.step()
    return dict(
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        scaler=dict(scale=65536.0, growth_factor=2.0, _growth_tracker=3),
        meta=dict(epoch=1, cfg='a = 1\n', version=torch.__version__, CLASSES=('wall', 'floor'), PALETTE=[[1, 2, 3]]),
        numpy=[
            *(np.arange(6).reshape(2, 3).astype(kind) for kind in '?bhilqBHILQefdgFDG'),
            np.arange(6.0).reshape(2, 3).T,
            np.array(['a', 'bcd']),
            np.array([b'x']),
            np.array(['2020-01-01'], 'M8[D]'),
            np.array([1, 2], '>f8'),
            np.zeros((0, 3)),
            np.array(5),
            np.dtype('f4'),
            (np.float32(2.5), np.int64(3), np.bool_(True), np.str_('abc'), np.complex64(1j), np.float16(1)),
        ],
        random=(np.random.get_state(), random.getstate(), torch.get_rng_state()),
        tensors=[torch.ones(2, dtype=torch.bfloat16), torch.tensor(3), torch.nn.Parameter(torch.ones(1))],
        torch=(torch.Size([1, 2]), torch.device('cuda:1'), torch.float16, torch.strided),
        python=[None, True, 2**80, 1.5, 1j, 'ä', b'ab', bytearray(b'x'), {1, 2}, frozenset({3}), slice(1, 2), range(3)],
        containers=[OrderedDict(a=1), Counter('aab'), (1, [2, (3, np.ones(1))])],
        args=argparse.Namespace(lr=0.1, out=Path('/a/b'), classes=np.arange(3)),
    )


def digest(value):
    """Something that is equal exactly where two values are."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1)
        return 'tensor', str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        # Long doubles have bytes that mean nothing.
        numbers = repr(value) if value.dtype.char in 'gG' else value.tobytes()
        return 'array', value.dtype.str, value.shape, value.flags.c_contiguous, numbers
    if isinstance(value, dict):
        return type(value).__name__, tuple((key, digest(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(digest, value))
    if isinstance(value, argparse.Namespace):
        return digest(vars(value))
    return type(value).__name__, repr(value)


@pytest.fixture
def marker(tmp_path) -> Path:
    """The file that a payload writes; a test ends with it absent."""
    path = tmp_path / 'marker'
    yield path
    assert not path.exists()


# ---- data ----


@pytest.mark.parametrize('new_format', [True, False])
def test_what_checkpoints_hold_comes_back_as_it_was(tmp_path, new_format):
    content = data()
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=new_format)
    read = read_checkpoint(tmp_path / 'a.pth')
    for key, value in content.items():
        assert digest(read[key]) == digest(value), key
    assert read.keys() == content.keys()
    assert read_checkpoint(tmp_path / 'a.pth')['numpy'][0].flags.writeable


def test_log_buffers_of_mmengine_come_back(tmp_path):
    buffer = HistoryBuffer([1.0, 4.0], [1, 3])
    torch.save(dict(state_dict={}, message_hub=dict(log_scalars=dict(loss=buffer, same=buffer))), tmp_path / 'a.pth')
    read = load_checkpoint(tmp_path / 'a.pth')['message_hub']['log_scalars']
    assert read['loss'].mean() == 1.25 and read['loss'].statistics('min') == 1 and read['same'] is read['loss']
    read['loss'].update(7.0)
    assert read['loss'].current() == 7 and read['loss'].max_length == buffer.max_length


def test_files_that_numpy_1_wrote_are_read(tmp_path):
    buffer = io.BytesIO()
    torch.save(dict(a=np.arange(3), b=np.float64(2)), buffer, _use_new_zipfile_serialization=False)
    (tmp_path / 'a.pth').write_bytes(buffer.getvalue().replace(b'numpy._core.', b'numpy.core.'))
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read['a'].tolist() == [0, 1, 2] and read['b'] == 2


def test_dicts_with_habits_become_dicts(tmp_path):
    torch.save(dict(a=defaultdict(list, {1: [2]}), b=ConfigDict(c=ConfigDict(d=np.ones(2)))), tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read['a'] == {1: [2]} and type(read['a']) is dict and read['b']['c']['d'].tolist() == [1, 1]


def test_one_object_in_two_places_stays_one(tmp_path):
    array, shared = np.ones(2), [1]
    torch.save(dict(a=[array, shared], b=(array, shared)), tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read['a'][0] is read['b'][0] and read['a'][1] is read['b'][1]


def test_safetensors_and_nests(tmp_path, caplog):
    weights = dict(w=torch.arange(3.0))
    save_file(weights, tmp_path / 'a.safetensors')
    assert torch.equal(read_checkpoint(tmp_path / 'a.safetensors')['w'], weights['w'])
    assert 'a.safetensors is of a format without checksums' in caplog.text
    for nest in ('state_dict', 'model', 'model_state_dict'):
        torch.save({nest: {'module.w': weights['w']}}, tmp_path / 'a.pth')
        assert torch.equal(read_state_dict(tmp_path / 'a.pth')['w'], weights['w'])
    whole = (tmp_path / 'a.safetensors').read_bytes()
    for cut in (4, 20, len(whole) - 1):
        (tmp_path / 'a.safetensors').write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match='a.safetensors is damaged'):
            read_checkpoint(tmp_path / 'a.safetensors')
    (tmp_path / 'a.safetensors').write_bytes(b'\xff' * 7 + b'\x7f' + whole[8:])
    with pytest.raises(CheckpointError, match='a.safetensors is damaged'):
        read_checkpoint(tmp_path / 'a.safetensors')


# ---- code ----


@pytest.mark.parametrize('form', ['zip', 'legacy', 'protocol 4', 'legacy, protocol 4', 'bare pickle', 'protocol 0'])
@pytest.mark.parametrize('name', NAMES)
def test_code_is_named_and_not_run(tmp_path, marker, name, form):
    content, file = dict(state_dict={}, a=torch.ones(1), extra=payloads(marker)[name]), tmp_path / 'evil.pth'
    if form in ('bare pickle', 'protocol 0'):
        content.pop('a')
        file.write_bytes(pickle.dumps(content, protocol=0 if form == 'protocol 0' else None))
    else:
        protocol = 4 if 'protocol 4' in form else 2
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization='legacy' not in form)
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(file)
    message = str(refusal.value)
    # The innermost call of a chain comes first in the file, and so does what protocol 0 makes an object by.
    also = ('builtins.__import__',) if name == 'builtins.getattr' else ('copyreg._reconstructor',)
    assert any(f'evil.pth is refused: it holds {n},' in message for n in (*also, name)), message
    assert '--trust-checkpoint' in message and '\n' not in message and 'weights_only' not in message


def raw(*instructions: bytes) -> bytes:
    return b'\x80\x02' + b''.join(instructions) + b'.'


NUMPY_ARRAY = b'cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'


@pytest.mark.parametrize(
    ('instructions', 'named'),
    [
        ([b'cbuiltins\ngetattr\nccollections\nOrderedDict\nX\x04\x00\x00\x00keys\x86R'], 'builtins.getattr'),
        # A method of a log buffer is a name only, so it cannot be called.
        (
            [b'cbuiltins\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\nX\x08\x00\x00\x00__init__\x86R)R'],
            'HistoryBuffer.__init__',
        ),
        # NumPy itself accepts all of these and then follows what the file gives as an address.
        ([b'cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R'], "numpy.dtype('O8')"),
        (
            [
                b'cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NX\x01\x00\x00\x00a\x85}',
                b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb',
            ],
            'numpy.dtype',
        ),
        ([NUMPY_ARRAY, b'(K\x01K\x01\x85X\x02\x00\x00\x00f8\x89U\x08AAAAAAAAtb'], 'numpy.dtype'),
        ([b'cpathlib\nPosixPath\nK\x01\x85R'], 'pathlib.Path'),
    ],
    ids=['getattr', 'method', 'objects', 'fields', 'no dtype', 'path'],
)
def test_hand_made_pickles_get_nothing_out_of_what_is_allowed(tmp_path, instructions, named):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('a/data.pkl', raw(*instructions))
        archive.writestr('a/version', b'3\n')
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(tmp_path / 'a.pth')
    assert f'is refused: it holds {named}' in str(refusal.value)


def test_programs_of_torch_are_refused(tmp_path, marker):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), tmp_path / 'script.pth')
    with pytest.raises(CheckpointError, match='script.pth is refused: it holds a TorchScript program'):
        read_checkpoint(tmp_path / 'script.pth')
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            (tmp_path / name).write_bytes(pickle.dumps(Call(os.makedirs, str(marker), 0o777, True)))
            archive.add(tmp_path / name, name)
    with pytest.raises(CheckpointError, match='old.pth is refused: it holds a tar archive of PyTorch 0.1'):
        read_checkpoint(tmp_path / 'old.pth')


def test_a_name_of_the_file_cannot_write_on_the_terminal(tmp_path):
    file = tmp_path / 'a\n\x1b[31mb.pth'
    file.write_bytes(raw(b'cx\x1b[31m\nevil\n'))
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(file)
    assert str(refusal.value).isprintable() and 'evil' in str(refusal.value)


def test_trust_loads_anything_and_ends_with_its_block(tmp_path):
    marker, file = tmp_path / 'ran', tmp_path / 'a.pth'
    torch.save(dict(state_dict={}, extra=Call(os.makedirs, str(marker), 0o777, True)), file)
    for trusted in (lambda: load_checkpoint(file, trust=True), lambda: _within(file)):
        trusted()
        assert marker.exists()
        marker.rmdir()
    with trust_checkpoints():
        with trust_checkpoints(False):  # an argument that was not given takes nothing away
            assert is_trusted()
    assert not is_trusted()
    with pytest.raises(CheckpointError):
        load_checkpoint(file)
    assert not marker.exists()


def _within(file: Path) -> None:
    with trust_checkpoints():
        load_checkpoint(file)


def test_trusted_files_must_be_whole_too_and_importable(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(64))), tmp_path / 'a.pth')
    content = bytearray((tmp_path / 'a.pth').read_bytes())
    content[content.index(torch.ones(4).numpy().tobytes())] ^= 1
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match='a.pth is damaged'):
        load_checkpoint(tmp_path / 'a.pth', trust=True)
    (tmp_path / 'b.pth').write_bytes(pickle.dumps(1))
    with pytest.raises(CheckpointError, match='b.pth cannot be loaded'):
        load_checkpoint(tmp_path / 'b.pth', trust=True)


# ---- damage ----


@pytest.mark.parametrize(('stride', 'start'), [(17, 0), pytest.param(1, 0, marks=pytest.mark.slow)])
def test_a_flipped_byte_anywhere_is_noticed_or_changes_nothing(tmp_path, stride, start):
    """All positions: pickle, tensors, arrays, headers of records, padding, the directory at the end."""
    model = torch.nn.Linear(2, 2)
    content = dict(state_dict=model.state_dict(), meta=dict(epoch=1), log=HistoryBuffer([1.0], [1]).data)
    file = tmp_path / 'a.pth'
    torch.save(content, file)
    whole, expected = file.read_bytes(), digest(content)
    directory = whole.index(b'PK\x01\x02')
    # The directory's fields are read by torch and by zipfile each in its own way: all of its bytes, always.
    positions = [*range(start, directory, stride), *range(directory, len(whole))]
    outcomes = Counter()
    choose = random.Random(0)
    for position in positions:
        for flip in (1 << choose.randrange(8), 0x10):
            changed = bytearray(whole)
            changed[position] ^= flip
            file.write_bytes(changed)
            try:
                assert digest(read_checkpoint(file)) == expected, (position, flip)
                outcomes['same'] += 1
            except CheckpointError as error:
                assert 'a.pth is' in str(error) and '\n' not in str(error)
                outcomes['refused'] += 1
    assert outcomes['refused'] > outcomes['same'] > 0


def test_a_truncated_file_is_noticed_wherever_it_ends(tmp_path):
    file = tmp_path / 'a.pth'
    torch.save(data(), file)
    whole = file.read_bytes()
    for size in (0, 1, 4, 5, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match='a.pth is damaged'):
            load_checkpoint(file)
    file.write_bytes(whole[:2048] + bytes(len(whole) - 2048))  # blocks that the disk did not get
    with pytest.raises(CheckpointError, match='a.pth is damaged'):
        load_checkpoint(file)


def test_a_legacy_file_is_read_with_a_word_on_its_missing_checksum(tmp_path, caplog):
    file = tmp_path / 'a.pth'
    torch.save(data(), file, _use_new_zipfile_serialization=False)
    load_checkpoint(file)
    assert len(caplog.records) == 1 and 'a.pth is of a format without checksums' in caplog.text
    whole = file.read_bytes()
    for size in (3, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match='a.pth is damaged'):
            load_checkpoint(file)


def test_a_file_without_checksums_says_so(tmp_path, caplog):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    load_checkpoint(tmp_path / 'a.pth')
    assert 'a.pth is of a format without checksums' in caplog.text


def test_two_records_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive, pytest.warns(UserWarning, match='Duplicate name'):
        archive.writestr('a/data.pkl', raw(b'}'))
        archive.writestr('a/data.pkl', raw(b'K\x01'))
    with pytest.raises(CheckpointError, match='two of its records have the same name'):
        read_checkpoint(tmp_path / 'a.pth')


def test_what_is_no_checkpoint_is_named(tmp_path):
    folder, pipe, link = tmp_path / 'folder', tmp_path / 'pipe', tmp_path / 'link'
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(link)
    (tmp_path / 'text').write_text('hello')
    (tmp_path / 'page').write_text('<html>not found</html>')
    (tmp_path / 'lfs').write_text('version https://git-lfs.github.com/spec/v1\n')
    (tmp_path / 'zeros').write_bytes(bytes(4096))
    torch.save([1], tmp_path / 'list')
    torch.save(dict(state_dict=[1]), tmp_path / 'state')
    torch.save(dict(state_dict={}, meta='x'), tmp_path / 'meta')
    torch.save(dict(state_dict={3: torch.ones(1)}), tmp_path / 'key')
    with zipfile.ZipFile(tmp_path / 'zip', 'w') as archive:
        archive.writestr('a.txt', 'hello')
    for name, reason in dict(
        folder='is a folder',
        pipe='is a pipe, socket or device',
        link='cannot be read',
        text='is damaged or no checkpoint: it ends early or is no file of torch.save',
        page='is damaged or no checkpoint',
        lfs='is a pointer of Git LFS',
        zeros='is damaged or no checkpoint',
        list='is no checkpoint of mmengine: it has no state_dict',
        state='its state_dict is no dict',
        meta='its meta is no dict',
        key='3 is no parameter name',
        zip='is damaged or no checkpoint',
    ).items():
        with pytest.raises(CheckpointError, match=f'{tmp_path / name} {reason}|{tmp_path / name}.*{reason}'):
            load_checkpoint(tmp_path / name)
    for absent in (tmp_path / 'absent', tmp_path / 'text/below', '~nobody/a.pth'):
        with pytest.raises(MissingCheckpointError, match='there is no checkpoint'):
            load_checkpoint(absent)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / 'absent')


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads everything')
def test_an_unreadable_file_is_named(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    (tmp_path / 'a.pth').chmod(0)
    with pytest.raises(CheckpointError, match='a.pth cannot be read: .*Permission denied'):
        load_checkpoint(tmp_path / 'a.pth')
