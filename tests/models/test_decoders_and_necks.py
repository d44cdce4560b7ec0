import pytest
import torch
from torch import nn

from mmrepmtl.models import ConvDecoder, DeepLabDecoder, GlobalPoolNeck, LinearDecoder
from mmrepmtl.registry import MODELS


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_deeplab_has_the_paper_s_layers():
    decoder = MODELS.build(dict(type='DeepLabDecoder', in_channels=[2048], out_channels=13, dropout=0.3))
    assert round(count_parameters(decoder) / 1e6, 1) == 16.1
    rates = [m.dilation[0] for m in decoder.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
    assert rates == [12, 24, 36]
    assert [m.p for m in decoder.modules() if isinstance(m, nn.Dropout)] == [0.3]
    assert [m.p for m in DeepLabDecoder(8, 1).modules() if isinstance(m, nn.Dropout)] == [0.5]


def test_deeplab_refuses_to_train_on_one_sample():
    decoder = DeepLabDecoder(8, 3)
    with pytest.raises(ValueError, match='at least 2'):
        decoder(torch.rand(1, 8, 4, 4))
    assert decoder.eval()(torch.rand(1, 8, 4, 4)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize('norm', ['BN', 'GN', None])
def test_conv_decoder(norm):
    decoder = ConvDecoder(6, 2, hidden_channels=16, num_convs=2, norm=norm, dropout=0.1)
    assert decoder(torch.rand(2, 6, 5, 7)).shape == (2, 2, 5, 7)
    kinds = {type(layer) for layer in decoder.layers}
    assert (nn.BatchNorm2d in kinds, nn.GroupNorm in kinds) == (norm == 'BN', norm == 'GN')


def test_conv_decoder_names_an_unknown_norm():
    with pytest.raises(ValueError, match="'LN'"):
        ConvDecoder(6, 2, norm='LN')


def test_linear_decoder_pools_maps():
    decoder = LinearDecoder(6, 4)
    maps = torch.rand(2, 6, 3, 5)
    torch.testing.assert_close(decoder(maps), decoder(maps.flatten(2).mean(dim=2)))
    assert LinearDecoder(6, 4, hidden_channels=8, dropout=0.5)(maps).shape == (2, 4)


def test_a_decoder_reads_the_level_it_declares():
    levels = (torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 4))
    assert ConvDecoder([3, 5], 1)(levels).shape == (2, 1, 4, 4)
    assert ConvDecoder([3, 5], 1, in_index=0)(levels).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match=r'in_index=2.*\[3, 5\]'):
        ConvDecoder([3, 5], 1, in_index=2)


def test_global_pool_neck_is_the_office_trunk():
    neck = GlobalPoolNeck([512], 512)
    assert [type(layer) for layer in neck.layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert neck.layers[3].p == 0.5
    assert neck(torch.rand(2, 512, 7, 7)).shape == (2, 512)
    assert neck.channels == [512]
    pooling = GlobalPoolNeck([3, 6], None)
    maps = torch.rand(2, 6, 4, 4)
    torch.testing.assert_close(pooling((torch.rand(2, 3, 8, 8), maps)), maps.flatten(2).mean(dim=2))
    assert pooling.channels == [6]
