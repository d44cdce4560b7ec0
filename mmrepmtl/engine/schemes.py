"""Loaders of checkpoints for mmengine, for files and for addresses, that run no code from what they load.

mmengine's own loaders unpickle a file if it cannot be read as data, and an address without trying. ``CheckpointLoader``
chooses a loader by the start of the path. Replacing its loaders therefore covers ``load_from``, resuming, ``init_cfg``
and every other place where mmengine, mmcv and mmseg load a checkpoint. Loaders that others registered under other
starts stay.
"""

import os
import re
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmrepmtl.engine.aliases import State
from mmrepmtl.utils.checkpoint import CheckpointError, is_trusted, read_checkpoint

_HTTP = ('http://', 'https://')


def register_schemes() -> None:
    """Replaces mmengine's loaders by those of this module."""
    for starts, loader in (
        ('', load_from_local),
        (_HTTP, load_from_http),
        (('modelzoo://', 'torchvision://'), load_from_torchvision),
        (('open-mmlab://', 'openmmlab://'), load_from_openmmlab),
        ('mmcls://', load_from_mmcls),
        ([r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], load_from_ceph),
        ('pavi://', load_from_pavi),
    ):
        CheckpointLoader.register_scheme(starts, loader, force=True)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Loads a file as data; the text of a config in it cannot be evaluated afterwards.

    Args:
        filename: The file.
        map_location: As for ``torch.load``; None means the CPU, which every machine has.

    Raises:
        CheckpointError: It is damaged, or holds more than data.
    """
    content = read_checkpoint(filename, map_location or 'cpu')
    return content if is_trusted() else disarm_config_texts(content, filename)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Loads from an address; the file stays in torch.hub's folder, where the next run finds it."""
    file = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(filename).path).name)
    rank, _ = get_dist_info()
    if rank == 0:
        _download(filename, file)
    barrier()
    _download(filename, file)  # on the other machines
    return load_from_local(str(file), map_location)


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Loads weights of torchvision by their name, such as ``torchvision://resnet50``."""
    urls = mmengine_checkpoint.get_torchvision_models()
    return load_from_http(urls[filename.split('://', 1)[1]], map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """Loads weights of OpenMMLab by their name, such as ``open-mmlab://resnet50_v1c``."""
    name = filename.split('://', 1)[1]
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    url = mmengine_checkpoint.get_external_models()[name]
    if url.startswith(_HTTP):
        return load_from_http(url, map_location)
    return load_from_local(os.path.join(mmengine_checkpoint._get_mmengine_home(), url), map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> State:
    """Loads the backbone of a classifier of mmcls by its name."""
    content = load_from_http(mmengine_checkpoint.get_mmcls_models()[filename.split('://', 1)[1]], map_location)
    weights = content.get('state_dict', content)
    backbone = {key.removeprefix('backbone.'): weights[key] for key in weights if key.startswith('backbone.')}
    return dict(state_dict=OrderedDict(backbone))


def load_from_ceph(filename: str, map_location: Any = None, backend: str = 'petrel') -> Any:
    """Loads from an object store."""
    content = get_file_backend(filename, backend_args=dict(backend=backend)).get(filename)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, Path(filename).name)
        file.write_bytes(content)
        return load_from_local(str(file), map_location)


def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """Refuses the model cloud of pavi, because mmengine unpickles its files; ``trust_checkpoints`` allows it.

    Raises:
        CheckpointError: Outside of ``trust_checkpoints``.
    """
    if not is_trusted():
        raise CheckpointError(
            f'the checkpoint {filename} is refused: mmengine unpickles what comes from pavi, which could run code; '
            'download it and give the file'
        )
    return mmengine_checkpoint.load_from_pavi(filename, map_location)


def disarm_config_texts(content: Any, name: str) -> Any:
    """Makes the config texts of a checkpoint, which are Python code, harmless if someone evaluates them.

    ``Runner.resume`` evaluates ``meta['config']``. An inferencer without a config evaluates the text in the message
    hub, or else ``meta['cfg']``. The first two are removed. The last stays, because publishing a checkpoint writes it
    again: its lines become comments below a line that raises the reason.

    Args:
        content: The content of the checkpoint; changed in place.
        name: The file, for the reason.
    """
    meta, hub = (content.get(key) if isinstance(content, dict) else None for key in ('meta', 'message_hub'))
    runtime = hub.get('runtime_info') if isinstance(hub, dict) else None
    if isinstance(runtime, dict):
        runtime.pop('cfg', None)
        if isinstance(runtime.get('keep_ckpt_ids'), list):  # CheckpointHook deletes the files of these numbers
            runtime['keep_ckpt_ids'] = [number for number in runtime['keep_ckpt_ids'] if isinstance(number, int)]
    if isinstance(meta, dict):
        meta.pop('config', None)
        if 'cfg' in meta:
            meta['cfg'] = _disarmed(str(meta['cfg']), name)
    return content


def _disarmed(text: str, name: str) -> str:
    reason = (
        f'the config text in the checkpoint {name} is code and is not evaluated; give the config file as well, or, if '
        'you trust where the checkpoint comes from, load it within mmrepmtl.utils.checkpoint.trust_checkpoints()'
    )
    comments = '\n'.join(f'# {line}' for line in text.splitlines())
    disarmed = f'# The config of a run, as comments.\n\nraise ValueError({reason!r})\n\n{comments}\n'
    # mmengine replaces double braces before it evaluates a text, and the replacement might end a comment.
    return re.sub(r'\{(?=\{)', '{ ', disarmed)


def _download(url: str, file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=os.isatty(0))
