"""The picture of the saliency maps."""

import numpy as np
import pytest
import torch

from mmrepmtl.analysis.saliency_maps import SaliencyMaps, saliency_maps
from mmrepmtl.analysis.saliency_sheet import HEAT_K3, on_picture, overlay, owner_colours, saliency_sheet, task_colours
from tests.analysis.harness import COUNT, SETTINGS, TASKS, batch, toy


def test_the_hottest_place_is_where_the_saliency_is_greatest():
    picture = np.full((16, 24, 3), 128, np.uint8)
    magnitude = np.zeros((4, 6))
    magnitude[2, 5], magnitude[0, 0] = 4e-7, 1e-7
    heat = overlay(picture, on_picture(magnitude, (16, 24), (16, 24))).astype(int)
    assert (heat[8:12, 20:24] == heat[9, 21]).all() and heat[9, 21].sum() > 2 * heat[2, 2].sum()
    assert heat[0, 12].std() == 0  # grey, where nothing is
    assert overlay(picture, np.zeros((16, 24))).std() == 0


def test_a_map_that_covers_padding_is_cut_with_it():
    values = np.arange(24.0).reshape(4, 6)
    cut = on_picture(values, (16, 24), (8, 20))
    assert cut.shape == (8, 20) and cut[-1, -1] == values[1, 4] and cut[0, 0] == 0


def test_owners_have_their_colours_and_equal_shares_are_grey():
    colours = task_colours(3)
    ownership = np.zeros((3, 1, 5))
    ownership[[0, 1, 2], 0, [0, 1, 2]] = 1
    ownership[:, 0, 3] = 1 / 3
    drawn = owner_colours(ownership)[0]
    assert drawn[:3].tolist() == [list(colour) for colour in colours]
    assert np.ptp(drawn[3].astype(int)) < 20 and drawn[4].tolist() == [0, 0, 0]


def test_a_sheet_holds_every_panel_of_every_model():
    model, (images, samples) = toy(), batch()
    other = toy(seed=1)
    runs = {name: saliency_maps(m, images, samples, SETTINGS)[0] for name, m in (('A', model), ('B', other))}
    pictures = [np.rint(255 * image.numpy().transpose(1, 2, 0)).astype(np.uint8) for image in images]
    captions = [(f'val {index}', 'target: truth') for index in range(COUNT)]
    sheet = saliency_sheet(pictures, captions, runs, ['a note'])
    both = [sheet, saliency_sheet(pictures, captions, dict(A=runs['A']), ['a note'])]
    assert both[0].shape[0] == both[1].shape[0] and both[0].shape[1] > 1.7 * both[1].shape[1]
    for maps in runs.values():
        for b in range(COUNT):
            for t in range(3):
                magnitude = on_picture(maps.magnitude_TBHW[t, b].numpy(), (16, 24), (16, 24))
                assert has_panel(sheet, overlay(pictures[b], magnitude))
            owners = owner_colours(maps.ownership_TBHW[:, b].numpy())
            assert has_panel(sheet, on_picture(owners, (16, 24), (16, 24)))
    with pytest.raises(ValueError, match='on 4 images, expected .* on 3'):
        saliency_sheet(pictures[:3], captions[:3], runs)


def has_panel(sheet: np.ndarray, panel: np.ndarray) -> bool:
    """Whether the panel, magnified to 168 pixels, is somewhere in the sheet."""
    large = panel.repeat(7, axis=0).repeat(7, axis=1)
    places = np.argwhere((sheet == large[0, 0]).all(-1))
    height, width = large.shape[:2]
    return any(np.array_equal(sheet[top : top + height, left : left + width], large) for top, left in places)


@pytest.mark.parametrize('count', [COUNT, 20])
@pytest.mark.parametrize('tasks', [1, 3])
def test_the_matrices_of_a_model_stay_below_its_panels(tasks, count):
    """However many images there are: two models side by side must not be drawn over each other."""
    ones = torch.ones(tasks, count, 2, 3, dtype=torch.float64)
    anchors, affinities = torch.full((count, count), 0.25), torch.full((count, tasks), 0.75)
    maps = SaliencyMaps(TASKS[:tasks], ones, ones / tasks, anchors, affinities, 1.0, ones[:, 0, 0, 0], {}, (4, 6))
    images, captions = [np.zeros((4, 6, 3), np.uint8)] * count, [('', '')] * count
    one, two = saliency_sheet(images, captions, dict(A=maps)), saliency_sheet(images, captions, dict(A=maps, B=maps))
    right = one.shape[1] - 14  # the first model's panels
    assert (one[:, right:] == 255).all() and (two[:, right : right + 20] == 255).all()
    assert np.array_equal(one[:, :right], two[:, :right])
    for value, cells in ((0.25, count * count), (0.75, count * tasks)):
        assert (one == HEAT_K3[int(255 * value)]).all(-1).sum() >= cells
