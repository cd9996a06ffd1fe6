"One tiny run on 12-bit images: training, bundle, ONNX and predict scale alike; evaluate says what it takes."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from simam_ema_fastai.data.datasets import load_samples
from simam_ema_fastai.deploy.load import load_exported
from simam_ema_fastai.deploy.predict import predict_images
from simam_ema_fastai.runtime.classifier import open_model

rng = np.random.default_rng(0)
tiny = ['--data', 'folder', '--arch', 'resnet18', '--weights', 'none', '--variant', 'baseline', '--size', '32',
        '--bs', '8', '--epochs', '2', '--no-report']


def fill(folder, n, top=4000):
    "A folder of `n` images with values up to `top`."
    folder.mkdir(parents=True)
    for i in range(n): Image.fromarray((rng.random((40, 40))*top).astype(np.uint16)).save(folder/f'{i}.png')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp('deep')
    for k, c in enumerate('ab'):
        for part, n in (('data', 20), ('more', 6)): fill(d/part/c, n, 1500 + 2500*k)
        for part, n in (('train', 4), ('valid', 3)): fill(d/'split'/part/c, n)
    shutil.copytree(d/'data', d/'copy')
    return d


@pytest.fixture(scope='module')
def run(simam_ema, folder):
    "A finished run on the folder's `data`."
    status, _, err = simam_ema('train', *tiny, '--path', folder/'data', '--out', folder/'out')
    assert status == 0 and err.count('40 of 40 images have more than eight bits') == 1 and '4095 white' in err, err
    return folder/'out'/'baseline-uniform-s1'


def test_every_format_scales_alike(simam_ema, folder, run):
    manifest = json.loads((run/'model.json').read_text())
    assert manifest['transforms']['white'] == {'int': 4095} and manifest['version'] == 2

    predictions = pd.read_csv(run/'predictions.csv')
    files = [folder/'data'/f for f in predictions.file]
    loaded = {'pickle': load_exported(run/'model.pkl', trust=True), 'bundle': load_exported(run)}
    ways = {name: predict_images(m, files, k=2) for name, m in loaded.items()}
    models = {'classifier': open_model(run)}
    if simam_ema('export', run, '--onnx', folder/'m.onnx')[0] == 0: models['onnx'] = open_model(folder/'m.onnx')
    a = np.asarray(Image.open(files[0]))
    for name, m in models.items():
        ways[name] = pd.DataFrame([dict(label1=row[0][0], prob1=row[0][1]) for row in m.classify(files, 2)])
        assert (m.prepare(a) == m.prepare(files[0])).all() and m.prepare(files[0]).max() > 50
        with pytest.warns(UserWarning, match='are clipped'): m.prepare((a*10).clip(0, 65535).astype(np.uint16))
    t = manifest['calibration']['temperature']  # which the run's own predictions do not have
    scaled = predictions.prob1**(1/t)/(predictions.prob1**(1/t) + (1 - predictions.prob1)**(1/t))
    for name, df in ways.items():
        assert np.abs(df.prob1 - scaled).max() < 1e-5, name
        assert list(df.label1) == ['ab'[i] for i in predictions.pred1], name


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('args, n, says', [
    (['--path', 'more'], '12 of 12', ['all of']),
    (['--path', 'data'], '8 of 40', ['20% of every class']),
    (['--path', 'copy'], '8 of 40', ['20% of every class']),  # the run's own data, elsewhere
    (['--data', 'folder', '--path', 'split'], '6 of 14', ['what lies in', 'valid'])])
def test_evaluate_says_what_it_takes(simam_ema, folder, run, args, n, says):
    *args, path = args
    config = json.loads((run/'config.json').read_text())
    assert config['digest'] == load_samples('folder', folder/'data').digest()
    status, out, err = simam_ema('evaluate', run, *args, folder/path)
    assert status == 0 and f'{n} images: {says[0]}' in out and says[-1] in out, out + err
