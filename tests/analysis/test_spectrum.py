"""Power-law exponents: grouping and drawing by a made-up fit; the fit itself where weightwatcher is installed."""

import logging
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mmrepmtl.analysis.figures import write_figure
from mmrepmtl.analysis.spectrum import Layer, Spectrum, import_weightwatcher, spectrum, summarise
from mmrepmtl.analysis.spectrum_figure import spectrum_figure
from tests.analysis.harness import toy

ALPHAS = {'encoder.layers.0': 3.0, 'encoder.layers.2': 5.0, 'heads.depth.decoder.convs.0': 2.5}


def made_up(model):
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            alpha = next((a for start, a in ALPHAS.items() if name == start), 4.0)
            rows.append(dict(longname=name, alpha=alpha, xmin=0.1, D=0.05, num_evals=54))
    rows[-1]['alpha'] = -1.0  # as weightwatcher marks a fit that failed
    return rows[:1] + rows[2:]  # and it leaves out a layer that is too small


def test_layers_are_grouped_and_those_without_a_fit_are_named():
    model = toy()
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    found = spectrum(model, made_up)
    assert [layer.name for layer in found.layers] == [convs[0], *convs[2:-1]]
    assert {layer.name: layer.group for layer in found.layers} == {
        name: 'encoder' if name.startswith('encoder') else name.split('.')[1] for name in (convs[0], *convs[2:-1])
    }
    assert list(found.skipped) == [convs[1], convs[-1]]
    assert 'fewer than 10' in found.skipped[convs[1]] and 'its 54 eigenvalues' in found.skipped[convs[-1]]
    assert found.layers[0] == Layer(convs[0], 'encoder', 3.0, 0.1, 0.05, 54) and found.means()['encoder'] == 3.0


def test_a_model_of_another_project_is_grouped_by_its_children():
    model = nn.Sequential()
    model.backbone, model.decode_head = nn.Sequential(nn.Linear(20, 20)), nn.Linear(20, 20)
    rows = [dict(longname=n, alpha=a, xmin=1, D=0, num_evals=20) for n, a in (('backbone.0', 2), ('decode_head', 9))]
    assert spectrum(model, lambda _: rows).means() == dict(backbone=2.0, decode_head=9.0)


def test_a_depthwise_convolution_has_no_matrix():
    model = nn.Sequential(nn.Conv2d(20, 20, 5, groups=20), nn.Conv2d(20, 20, 1, groups=2))
    rows = [dict(longname=str(i), alpha=3.0, xmin=1, D=0, num_evals=25) for i in range(2)]
    found = spectrum(model, lambda _: rows)
    assert [layer.name for layer in found.layers] == ['1'] and 'depthwise' in found.skipped['0']


def test_a_model_without_a_fit_is_refused():
    with pytest.raises(ValueError, match='Sequential has no linear or convolutional layer with a fit'):
        spectrum(nn.Sequential(nn.ReLU()), lambda _: [])


def layers(**alphas):
    return Spectrum([Layer(f'{g}.{i}', g, a, 1.0, 0.0, 20) for g, own in alphas.items() for i, a in enumerate(own)], {})


def test_runs_of_one_label_are_averaged():
    runs = dict(
        ew=[layers(encoder=[2.0, 4.0], depth=[8.0]), layers(encoder=[5.0, 7.0], depth=[8.0])], stl=[layers(a=[1.0])]
    )
    means = summarise(runs)
    assert means['ew']['encoder'] == dict(mean=4.5, std=pytest.approx(math.sqrt(4.5)), runs=2)
    assert means['ew']['depth']['std'] == 0 and math.isnan(means['stl']['a']['std'])


def test_the_figure_has_every_layer_and_the_means(tmp_path):
    runs = {'rep-mtl': [layers(encoder=[2.0, 4.0], depth=[3.0])], 'ew': [layers(encoder=[6.0, 20.0], depth=[11.0])]}
    figure = spectrum_figure(runs)
    left, right = figure.axes
    drawn = [
        line.get_ydata().tolist() for line in left.get_lines() if len(line.get_ydata()) and line.get_marker() in 'os'
    ]
    assert drawn == [[2.0, 4.0], [3.0], [6.0, 20.0], [11.0]]
    assert [text.get_text() for text in right.texts] == ['3.0', '3.0', '13.0', '11.0']
    assert [label.get_text() for label in right.get_xticklabels()] == ['encoder', 'depth']
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[1] >= 20
    write_figure(figure, tmp_path / 'a.png')
    write_figure(figure, tmp_path / 'a.svg')
    assert (tmp_path / 'a.png').stat().st_size > 10_000 and '<svg' in (tmp_path / 'a.svg').read_text()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'weightwatcher', None)
    with pytest.raises(ValueError, match=r'needs the package weightwatcher .*mmrepmtl\[analysis\]'):
        spectrum(toy())


def test_its_import_leaves_the_root_logger_alone(monkeypatch, tmp_path):
    (tmp_path / 'weightwatcher.py').write_text('import logging\nlogging.basicConfig(level=logging.INFO)\nHERE = 1\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'weightwatcher', raising=False)
    root = logging.getLogger()
    monkeypatch.setattr(root, 'handlers', [])
    monkeypatch.setattr(root, 'level', logging.WARNING)
    try:
        assert import_weightwatcher().HERE == 1
    finally:
        sys.modules.pop('weightwatcher', None)
    assert root.handlers == [] and root.level == logging.WARNING


def power_law(size: int, alpha: float) -> torch.Tensor:
    """A matrix whose W^T W has the eigenvalues of a density ~ lambda^-alpha from 1 on, at equal steps of its mass."""
    mass = (np.arange(size) + 0.5) / size
    eigenvalues = (1 - mass) ** (-1 / (alpha - 1))
    rotations = [np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0] for seed in (0, 1)]
    return torch.tensor(rotations[0] @ np.diag(np.sqrt(eigenvalues)) @ rotations[1], dtype=torch.float32)


@pytest.mark.parametrize('alpha', [2.5, 4.0])
def test_weightwatcher_finds_the_exponent_of_a_known_spectrum(alpha):
    pytest.importorskip('weightwatcher', reason='weightwatcher (extra `analysis`) is not installed')
    model = nn.Sequential(nn.Linear(300, 300, bias=False), nn.Linear(300, 5))
    with torch.no_grad():
        model[0].weight.copy_(power_law(300, alpha))
    found = spectrum(model)
    assert [layer.name for layer in found.layers] == ['0'] and list(found.skipped) == ['1']
    assert found.layers[0].alpha == pytest.approx(alpha, rel=0.05) and found.layers[0].eigenvalues == 300
