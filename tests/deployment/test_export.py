"""The exported file, as a user of onnxruntime alone sees it, and what is refused."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.apis.loading import load_model
from mmrepmtl.deployment import export
from mmrepmtl.deployment.check import compare, difference
from mmrepmtl.deployment.export import export_onnx, input_size
from mmrepmtl.deployment.graph import OnnxGraph, describe, predict
from mmrepmtl.deployment.writer import OnnxFile, to_onnx
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.models.heads import DenseHead, NormalHead
from mmrepmtl.registry import MODELS
from tests.apis.toy import CONFIG, NETWORK_SIZE, ROOT, TARGETS, picture
from tests.models.toy import PlainEncoder, build_model, head_configs

TASKS = ['semseg', 'edge', 'depth', 'normal', 'kind', 'pose']


def tool(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / 'tools/deployment/export.py', *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)


def session_of(file: Path | bytes) -> onnxruntime.InferenceSession:
    content = file.read_bytes() if isinstance(file, Path) else file
    return onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])


def save_run(folder: Path, text: str) -> tuple[Path, Path, nn.Module]:
    """A config, and the checkpoint and the model of it after two batches of training for its running statistics."""
    config, checkpoint = folder / 'config.py', folder / 'weights.pth'
    config.write_text(text)
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    for _ in range(2):
        model(torch.rand(8, 3, *getattr(model.encoder.model, 'image_size', NETWORK_SIZE)))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(targets=TARGETS))), checkpoint)
    return config, checkpoint, model.eval()


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> tuple[Path, Path]:
    """A model with BatchNorm and dropout."""
    text = CONFIG.replace('num_convs=1', 'num_convs=1, dropout=0.5')
    config, checkpoint, model = save_run(tmp_path_factory.mktemp('run'), text)
    assert any(isinstance(part, nn.Dropout) for part in model.modules())
    return config, checkpoint


@pytest.fixture(scope='module')
def exported(run) -> tuple[Path, str]:
    """The file that the command line makes of the run, and what it prints."""
    path = run[0].parent / 'model.onnx'
    result = tool(run[0], '--checkpoint', run[1], '--out', path)
    assert result.returncode == 0, result.stderr
    return path, result.stdout


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('count', [1, 3])
def test_the_file_predicts_what_the_inferencer_does(run, exported, count):
    pictures = [picture(NETWORK_SIZE, seed) for seed in range(count)]
    images = np.stack(pictures).astype(np.float32).transpose(0, 3, 1, 2) / 255
    session = session_of(exported[0])
    assert [output.name for output in session.get_outputs()] == TASKS
    found = dict(zip(TASKS, session.run(None, {'images': images}), strict=True))
    for index, result in enumerate(MultiTaskInferencer(*run, device='cpu')(pictures)):
        expected = result.predictions
        assert found['semseg'].shape == (count, 3, *NETWORK_SIZE) and len(np.unique(expected['semseg'])) > 1
        assert np.mean(found['semseg'][index].argmax(0) == expected['semseg']) > 0.999  # ties may fall either way
        assert np.abs(found['edge'][index, 0] - expected['edge']).max() < 1e-4
        for task in ('depth', 'normal', 'kind', 'pose'):
            assert np.abs(found[task][index] - expected[task]).max() < 1e-4


def test_the_logits_are_those_of_the_model(run, exported):
    model, _ = load_model(Config.fromfile(run[0]), run[1], 'cpu')
    images = torch.rand(2, 3, *NETWORK_SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model.raw_outputs((images - 0.5) / 0.25)['semseg']
    (found,) = session_of(exported[0]).run(['semseg'], {'images': images.numpy()})
    assert logits.std() > 1e-2 and np.abs(found - logits.numpy()).max() < 1e-4


def test_the_file_says_what_its_outputs_are(run, exported):
    session = session_of(exported[0])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ('images', 'tensor(float)', ['batch', 3, 24, 32])
    told = session.get_modelmeta().custom_metadata_map
    assert told['checkpoint'] == 'weights.pth' and told['generator'].startswith('mmrepmtl ')
    described = json.loads(told['input'])
    assert described['channels'] == 'RGB' and described['range'] == [0, 1] and described['shape'] == given.shape
    tasks = json.loads(told['tasks'])
    assert list(tasks) == TASKS
    assert tasks['semseg'] == dict(
        kind='segmentation',
        holds='class logits',
        axes=['batch', 'class', 'height', 'width'],
        classes=list(TARGETS['semseg']['classes']),
        palette=TARGETS['semseg']['palette'],
    )
    assert (tasks['depth']['holds'], tasks['depth']['unit']) == ('depth', 'metre')
    assert 'right, into the scene, up' in tasks['normal']['holds'] and tasks['edge']['holds'] == 'probability of yes'
    assert tasks['kind']['classes'] == list(TARGETS['kind']['classes']) and tasks['pose']['names'][2] == 'roll'
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes['normal'] == ['batch', 3, 24, 32] and shapes['kind'] == ['batch', 4]
    assert all(len(shapes[task]) == len(tasks[task]['axes']) for task in TASKS)
    assert str(ROOT).encode() not in exported[0].read_bytes()  # nothing of the machine that it was made on


def test_the_tool_prints_shapes_and_differences(exported):
    path, printed = exported
    lines = printed.splitlines()
    assert lines[0].startswith(f'{path}: ') and 'weights.pth' in lines[0]
    assert 'output normal  (batch, 3, 24, 32) unit vectors' in printed and 'depth in metres; largest diff' in printed
    assert lines[-1] == 'compared with PyTorch at 24 x 32, in batches of 1 and 3'


def test_batchnorm_and_dropout_are_those_of_evaluation(run, exported):
    kinds = {node.op_type for node in onnx.load(exported[0]).graph.node}
    assert not kinds & {'Dropout', 'RandomUniformLike', 'Bernoulli'}
    images = torch.rand(3, 3, *NETWORK_SIZE, generator=torch.Generator().manual_seed(2)).numpy()
    session = session_of(exported[0])
    (together,) = session.run(['depth'], {'images': images})
    (alone,) = session.run(['depth'], {'images': images[1:2]})
    assert np.abs(together[1] - alone[0]).max() < 1e-5 < np.abs(together[0] - alone[0]).max()


def test_tasks_may_have_the_names_of_operators():
    heads = head_configs(['depth', 'normal', 'kind', 'semseg'])
    names = ('relu', 'conv2d', 'val_0', 'tanh')
    renamed = MultiTaskModel(PlainEncoder(), dict(zip(names, heads.values(), strict=True))).eval()
    made = to_onnx(renamed, (16, 24), {})
    assert list(made.shapes) == list(names)
    assert set(compare(made.content, renamed, [(16, 24)], 1e-4)) == set(names)


@pytest.mark.slow
def test_padding_is_inside_the_graph_for_any_size():
    """Images of a size that the data preprocessor pads, and of a size of their own."""
    preprocessor = dict(type='MultiTaskDataPreprocessor', mean=(0.4,) * 3, std=(0.2,) * 3, size_divisor=32)
    model = build_model(['depth', 'semseg'], data_preprocessor=preprocessor).eval()
    fixed = to_onnx(model, (20, 40), {})
    assert fixed.shapes['semseg'] == ['batch', 5, 20, 40]
    assert compare(fixed.content, model, [(20, 40)], 1e-4)
    free = to_onnx(model, (20, 40), {}, dynamic_size=True)
    assert free.shapes['depth'] == ['batch', 1, 'height', 'width']
    assert compare(free.content, model, [(20, 40), (32, 64), (33, 31)], 1e-4)


@pytest.mark.slow
def test_height_and_width_may_stay_free(run, tmp_path):
    made = export_onnx(*run, out=tmp_path / 'free.onnx', dynamic_size=True)
    assert made.size is None and made.checked == [(24, 32), (56, 96), (33, 37)]
    session = session_of(made.path)
    assert session.get_inputs()[0].shape == ['batch', 3, 'height', 'width']
    assert session.run(['normal'], {'images': np.zeros((2, 3, 40, 48), np.float32)})[0].shape == (2, 3, 40, 48)
    assert json.loads(session.get_modelmeta().custom_metadata_map['input'])['shape'][2:] == ['height', 'width']


@pytest.mark.slow
def test_the_opset_is_the_one_that_was_asked_for():
    model = build_model(['depth']).eval()
    made = to_onnx(model, (16, 24), {}, opset=18)
    assert [entry.version for entry in onnx.load_from_string(made.content).opset_import] == [18] == [made.opset]
    with pytest.raises(ValueError, match='opset 99 cannot be had for this model'):
        to_onnx(model, (16, 24), {}, opset=99)


def test_the_code_of_the_documentation_runs(exported, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/deployment.md').read_text(), re.S)
    shutil.copy(exported[0], tmp_path / 'model.onnx')
    Image.fromarray(picture((60, 90))).save(tmp_path / 'kitchen.jpg')
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    assert names['labels'].shape == NETWORK_SIZE and set(names['predictions']) == set(TASKS)
    printed = capsys.readouterr().out.splitlines()
    assert "'wall'" in printed[0] and printed[1].endswith(' metre')


# ---- what is refused -------------------------------------------------------------------------------------------------


def perturb(monkeypatch, exported, task='depth', factor=1.01) -> None:
    """Lets the export make the graph of other weights than the ones that it is compared with."""

    def to_onnx(model, *arguments):
        with torch.no_grad():
            model.heads[task].decoder.layers[-1].weight.mul_(factor)
        return OnnxFile(exported[0].read_bytes(), 20, {name: [] for name in TASKS})

    monkeypatch.setattr(export, 'to_onnx', to_onnx)


def test_a_file_that_differs_from_pytorch_is_not_written(run, exported, tmp_path, monkeypatch):
    perturb(monkeypatch, exported)
    path = tmp_path / 'model.onnx'
    message = r"task 'depth': the exported graph differs from PyTorch by .* on images 1 x 3 x 24 x 32, the tolerance is"
    with pytest.raises(ValueError, match=message):
        export_onnx(*run, out=path)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b'the one before')
    with pytest.raises(ValueError, match=message):
        export_onnx(*run, out=path)
    assert [file.name for file in tmp_path.iterdir()] == ['model.onnx'] and path.read_bytes() == b'the one before'


def test_the_tool_says_in_one_line_what_is_wrong(run, exported, tmp_path, monkeypatch, capsys):
    perturb(monkeypatch, exported)
    path = tmp_path / 'model.onnx'
    arguments = ['export.py', str(run[0]), '--checkpoint', str(run[1]), '--out', str(path)]
    monkeypatch.setattr(sys, 'argv', [*arguments, '--tolerance', '2e-4'])
    main = runpy.run_path(str(ROOT / 'tools/deployment/export.py'))['main']
    assert main() == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("export: task 'depth'") and printed.out == ''
    assert printed.err.endswith('the tolerance is 0.0002; nothing was written\n') and printed.err.count('\n') == 1
    assert not path.exists()
    monkeypatch.setattr(sys, 'argv', [*arguments, '--tolerance', '0.1'])
    assert main() == 0 and path.read_bytes() == exported[0].read_bytes()


@pytest.mark.parametrize(
    'output, relative',
    [([2.0, 1.0], 0.25), ([4.0, 1.0], 0.0), ([4.0, np.nan], np.inf), ([np.inf, 1.0], np.inf)],
)
def test_a_difference_is_measured_by_the_largest_value(output, relative):
    found = difference(np.array(output, np.float32), np.array([4.0, 1.0]), None, 'a', '')
    expected = 0.5 if output[0] == 2 else relative
    assert found.relative == expected and (found.absolute == 4 * expected or expected == np.inf)
    zeros = np.zeros(2)
    assert difference(zeros, zeros, None, 'a', '').relative == 0
    assert difference(zeros + 1e-9, zeros, None, 'a', '').relative == np.inf


def test_normals_near_zero_count_by_their_length():
    """A vector of rounding errors has no direction that could be compared; one that is long enough has."""

    class Still(PlainEncoder):
        def forward(self, images):
            return torch.zeros(images.shape[0], 6, 1, 8) + images.new_tensor([1, 1, 1, 1, 1, 1, 1e-6, 0.5])

    model = build_model(['normal'], encoder=Still()).eval()
    model.heads['normal'] = NormalHead(nn.Conv2d(6, 3, 1, bias=False))
    model.heads['normal'].task = model.heads['normal'].target = 'normal'
    value, weight = predict(model, torch.zeros(1, 3, 1, 8))['normal']
    assert torch.allclose(value.norm(dim=1), torch.ones(1, 1, 8), atol=1e-5)
    assert torch.allclose(weight[0, 0, 0], torch.tensor([1, 1, 1, 1, 1, 1, 1e-6, 0.5]))
    wrong = value.numpy().copy()
    wrong[..., 6] *= -1
    assert difference(wrong, value.numpy(), weight.numpy(), 'a', '').absolute < 1e-5
    wrong[..., 7] *= -1
    assert difference(wrong, value.numpy(), weight.numpy(), 'a', '').absolute > 0.5


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"task 'a': .* returns \(1, 2\) on images x, PyTorch \(2,\)"):
        difference(np.zeros((1, 2)), np.zeros(2), None, 'a', 'x')


class Special(PlainEncoder):
    """An encoder with something that cannot be exported."""

    def __init__(self, what) -> None:
        super().__init__()
        self.what = what

    def forward(self, images):
        return self.what(super().forward(images))


def unsupported(z):
    return z + torch.linalg.eigvals(z[:, 0, :4, :4].mean(0)).real.sum()


def one_by_one(z):
    return torch.stack([z[index] for index in range(z.shape[0])])


@pytest.mark.parametrize(
    'what, message',
    [
        (unsupported, r'cannot be exported to ONNX: operator aten\.linalg_eig\.default: No ONNX function found'),
        (one_by_one, 'its code works with one batch size only, so that it cannot stay free'),
        (lambda z: z if z.sum() > 0 else -z, 'cannot be exported to ONNX: Could not guard on data-dependent'),
    ],
)
def test_a_model_that_cannot_be_exported_gives_one_clear_error(what, message):
    with pytest.raises(ValueError, match=message):
        to_onnx(build_model(['depth'], encoder=Special(what)).eval(), (16, 24), {})


def test_a_model_without_one_prediction_cannot_be_compared(exported):
    content = exported[0].read_bytes()
    with pytest.raises(ValueError, match="task 'depth': PyTorch itself predicts something else each time"):
        compare(content, build_model(['depth'], encoder=Special(torch.rand_like)).eval(), [(24, 32)], 1e-4)
    with pytest.raises(ValueError, match="task 'depth': what PyTorch itself predicts on images .* is not finite"):
        compare(content, build_model(['depth'], encoder=Special(lambda z: z / 0)).eval(), [(24, 32)], 1e-4)


def test_a_graph_that_does_not_take_a_batch_is_refused(exported):
    content = exported[0].read_bytes()
    with pytest.raises(ValueError, match='onnxruntime cannot run the graph on images 1 x 3 x 16 x 24'):
        compare(content, build_model(['depth']).eval(), [(16, 24)], 1e-4)
    with pytest.raises(ValueError, match='onnxruntime cannot load the exported graph'):
        compare(b'no graph', build_model(['depth']).eval(), [(16, 24)], 1e-4)


def test_a_network_of_one_size_is_refused_a_free_one(run, tmp_path):
    tokens = "name='test_vit', layout='NLC', model_args=dict(img_size=(32, 32))"
    text = CONFIG.replace("name='test_resnet', out_indices=(1,)", tokens)
    text = text.replace('heads=dict(', "neck=dict(type='ToMapNeck'),\n    heads=dict(", 1)
    config, checkpoint, _ = save_run(tmp_path, text)
    with pytest.raises(ValueError, match='does not take images of 64 x 96, so its size cannot stay free'):
        export_onnx(config, checkpoint, size=(32, 32), dynamic_size=True)


def test_the_size_is_that_of_the_test_pipeline(run):
    cfg = Config.fromfile(run[0])
    assert input_size(cfg) == (24, 32) and input_size(cfg, [40, 48]) == (40, 48)
    with pytest.raises(ValueError, match=r'size=\(0, 48\) must be \(height, width\)'):
        input_size(cfg, (0, 48))
    dataset = cfg.test_dataloader.dataset
    resize, pad = dict(type='ResizeMultiTask', size=(20, 40)), dict(type='PadMultiTask', size=(32, 48))
    dataset.pipeline = [resize, dict(type='PackMultiTaskInputs')]
    assert input_size(cfg) == (20, 40)
    dataset.pipeline = [resize, pad, dict(type='PackMultiTaskInputs')]
    assert input_size(cfg) == (32, 48)
    dataset.pipeline = [dict(type='PackMultiTaskInputs')]
    del dataset['size']
    with pytest.raises(ValueError, match='the config names no size of the network input; .* --size H W'):
        input_size(cfg)


def test_a_wrong_ending_would_overwrite_something_else(run):
    with pytest.raises(ValueError, match='weights.pth: the file to write must end with .onnx'):
        export_onnx(*run, out=run[1])


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(semseg=dict(TARGETS['semseg'], classes=('a', 'b'))), "'semseg' has 3 outputs, .* declares 2 classes"),
        (dict(boundary=dict(kind='depth')), "'edge': BinaryHead predicts binary, .* declared as 'depth'"),
        (dict(pose=None), "'pose': the target 'pose' is not declared; there are"),
    ],
)
def test_declarations_that_do_not_fit_are_refused(run, change, message):
    model, _ = load_model(Config.fromfile(run[0]), run[1], 'cpu')
    targets = {name: meta for name, meta in (TARGETS | change).items() if meta is not None}
    with pytest.raises(ValueError, match=message):
        describe(model, targets)


def test_inverse_depth_has_the_unit_of_the_data_set(run):
    model, _ = load_model(Config.fromfile(run[0]), run[1], 'cpu')
    told = describe(model, TARGETS | dict(depth=dict(kind='depth', inverse=True)))['depth']
    assert (told['holds'], told['unit']) == ('inverse depth', 'of the data set')


def test_what_the_graph_cannot_hold_is_refused(monkeypatch):
    with pytest.raises(ValueError, match='data preprocessor BaseDataPreprocessor cannot be exported'):
        OnnxGraph(build_model(data_preprocessor=dict(type='mmengine.BaseDataPreprocessor')))
    plain = dict(type='ConvDecoder', hidden_channels=8, num_convs=1)
    with pytest.raises(ValueError, match="a task is named 'images'"):
        OnnxGraph(MultiTaskModel(PlainEncoder(), dict(images=dict(type='DepthHead', decoder=plain))))
    model = build_model(['depth'])
    model.heads['depth'] = DenseHead(nn.Conv2d(6, 1, 1), 1)
    with pytest.raises(ValueError, match="task 'depth': what a DenseHead predicts is not known here"):
        OnnxGraph(model)
    monkeypatch.setattr('mmrepmtl.deployment.writer._MAX_BYTES', 1000)
    with pytest.raises(ValueError, match='GiB of weights, one ONNX file holds 2 GiB'):
        to_onnx(build_model(['depth']).eval(), (16, 24), {})


def test_a_missing_package_is_said_with_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'the export needs onnxruntime, .* pip install .mmrepmtl\[deploy\]'):
        export_onnx(*run)
