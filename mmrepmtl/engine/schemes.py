"""mmengine's loaders of checkpoints, for files and for addresses, without running anything from what they load.

mmengine's own unpickle whatever a file holds where reading it as data fails, and at once what comes from an address.
``CheckpointLoader`` finds a loader by the start of the path, so that replacing its loaders reaches ``load_from``,
resuming, ``init_cfg`` and every other place where mmengine, mmcv and mmseg load a checkpoint. Loaders that others
registered under starts of their own stay as they are.
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

from mmrepmtl.utils.checkpoint import CheckpointError, is_trusted, read_checkpoint

_HTTP = ('http://', 'https://')


def register_schemes() -> None:
    """Puts this module's loaders in the place of mmengine's."""
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


def load_from_mmcls(filename: str, map_location: Any = None) -> dict:
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
    """Refuses the model cloud of pavi, whose loader in mmengine unpickles; within ``trust_checkpoints`` it is called.

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
    """Sees to it that the config texts of a checkpoint, which are Python code, do nothing if someone evaluates them.

    ``Runner.resume`` evaluates ``meta['config']``, and an inferencer that is given no config evaluates what is in the
    message hub or else ``meta['cfg']``. The first two are taken out. The last stays, since a checkpoint that is
    published is written from what was read; its lines become comments below one that raises the reason.

    Args:
        content: What was read; changed in place.
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
    # mmengine fills in what stands in double braces before it evaluates a text, and that might end a comment.
    return re.sub(r'\{(?=\{)', '{ ', disarmed)


def _download(url: str, file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=os.isatty(0))
