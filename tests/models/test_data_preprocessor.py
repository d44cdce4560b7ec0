import pytest
import torch

from mmrepmtl.models import MultiTaskDataPreprocessor

from .toy import make_images, make_sample


def test_equal_images_are_stacked_unchanged_by_default():
    images = make_images([0, 1])
    for inputs in (images, list(images)):
        data = MultiTaskDataPreprocessor()(dict(inputs=inputs, data_samples=[make_sample(0), make_sample(1)]), True)
        assert torch.equal(data['inputs'], images)
        assert data['data_samples'][1].img_shape == (16, 24)


def test_normalisation_is_in_units_of_zero_to_one():
    image = torch.full((3, 2, 2), 0.5)
    data = MultiTaskDataPreprocessor(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))(dict(inputs=[image]))
    torch.testing.assert_close(data['inputs'][0, :, 0, 0], torch.tensor([0.0, 0.5, 0.5]))
    assert data['data_samples'] is None
    with pytest.raises(ValueError, match='divide values'):
        MultiTaskDataPreprocessor(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    with pytest.raises(ValueError, match='both mean and std'):
        MultiTaskDataPreprocessor(mean=(0.5, 0.4, 0.3))


def test_unequal_images_are_padded_with_void_targets():
    small, large = make_sample(0, (10, 20)), make_sample(1, (16, 12))
    images = [make_images([0], (10, 20))[0], make_images([1], (16, 12))[0]]
    preprocessor = MultiTaskDataPreprocessor(mean=[0.5], std=[0.5], size_divisor=8)
    data = preprocessor(dict(inputs=images, data_samples=[small, large]), training=True)
    assert data['inputs'].shape == (2, 3, 16, 24)
    torch.testing.assert_close(data['inputs'][0, :, :10, :20], images[0] * 2 - 1)
    assert data['inputs'][0, :, 10:].eq(0).all()
    assert data['inputs'][1, :, :, 12:].eq(0).all()
    padded = data['data_samples'][0]
    for name, void in (('semseg', 255), ('depth', 0), ('normal', 0)):
        target = padded.targets[name]
        assert target.shape[-2:] == (16, 24)
        assert torch.equal(target[..., :10, :20], small.targets[name])
        assert target[..., 10:, :].eq(void).all()
        assert target[..., 20:].eq(void).all()
    assert padded.targets['kind'].shape == ()
    assert padded.targets['pose'].shape == (3,)
    assert (padded.img_shape, padded.pad_shape) == ((10, 20), (16, 24))
    assert small.targets['semseg'].shape == (10, 20), 'the data set keeps its own sample'


def test_evaluation_leaves_targets_at_their_size():
    sample = make_sample(0, (37, 53))
    data = MultiTaskDataPreprocessor(size_divisor=8)(
        dict(inputs=[make_images([0], (10, 20))[0]], data_samples=[sample])
    )
    assert data['inputs'].shape == (1, 3, 16, 24)
    assert data['data_samples'][0].targets['depth'].shape == (1, 37, 53)
    assert data['data_samples'][0].img_shape == (10, 20)


def test_the_padding_of_a_target_can_be_told():
    preprocessor = MultiTaskDataPreprocessor(size_divisor=16, target_padding=dict(depth=-1))
    data = preprocessor(dict(inputs=[make_images([0], (10, 20))[0]], data_samples=[make_sample(0, (10, 20))]), True)
    assert data['data_samples'][0].targets['depth'][:, 10:].eq(-1).all()


def test_wrong_inputs_are_refused():
    preprocessor = MultiTaskDataPreprocessor()
    with pytest.raises(ValueError, match='torch.uint8'):
        preprocessor(dict(inputs=[torch.zeros(3, 4, 4, dtype=torch.uint8)]))
    with pytest.raises(ValueError, match='2 images, but 1'):
        preprocessor(dict(inputs=list(make_images([0, 1])), data_samples=[make_sample(0)]))
    images = [make_images([0], (16, 24))[0], make_images([1], (8, 8))[0]]
    with pytest.raises(ValueError, match=r'size \(9, 9\), its image \(8, 8\)'):
        preprocessor(dict(inputs=images, data_samples=[make_sample(0), make_sample(1, (9, 9))]), training=True)
