"One tiny run on 12-bit images: training, bundle, ONNX and predict scale alike; evaluate says what it takes."
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from simam_ema_fastai.deploy.load import load_model
from simam_ema_fastai.deploy.predict import predict_images
from simam_ema_fastai.runtime.classifier import open_model


def test_twelve_bits(simam_ema, tmp_path):
    rng = np.random.default_rng(0)
    for k, c in enumerate('ab'):
        for part, n in (('data', 20), ('more', 6)):
            (tmp_path/part/c).mkdir(parents=True)
            for i in range(n): Image.fromarray((rng.random((40, 40))*(1500 + 2500*k)).astype(np.uint16)).save(tmp_path/part/c/f'{i}.png')
    train = ['train', '--data', 'folder', '--path', tmp_path/'data', '--arch', 'resnet18', '--weights', 'none', '--variant', 'baseline', '--size', '32', '--bs', '8', '--epochs', '2', '--no-report',
             '--out', tmp_path/'out']
    status, out, err = simam_ema(*train)
    assert status == 0 and err.count('40 of 40 images have more than eight bits') == 1 and '4095 white' in err, err
    run = tmp_path/'out'/'baseline-uniform-s1'
    about = json.loads((run/'model.json').read_text())
    assert about['transforms']['white'] == {'int': 4095} and about['version'] == 2

    predictions = pd.read_csv(run/'predictions.csv')
    files = [tmp_path/'data'/f for f in predictions.file]
    ways = {'pickle': predict_images(load_model(run/'model.pkl', trust=True), files, k=2), 'bundle': predict_images(load_model(run), files, k=2)}
    models = {'classifier': open_model(run)}
    if simam_ema('export', run, '--onnx', tmp_path/'m.onnx')[0] == 0: models['onnx'] = open_model(tmp_path/'m.onnx')
    for name, m in models.items():
        ways[name] = pd.DataFrame([dict(label1=row[0][0], prob1=row[0][1]) for row in m.classify(files, 2)])
        a = np.asarray(Image.open(files[0]))
        assert (m.prepare(a) == m.prepare(files[0])).all() and m.prepare(files[0]).max() > 50
        with pytest.warns(UserWarning, match='are clipped'): m.prepare((a*10).clip(0, 65535).astype(np.uint16))
    for name, df in ways.items():
        assert np.abs(df.prob1 - predictions.prob1).max() < 1e-5 and list(df.label1) == ['ab'[i] for i in predictions.pred1], name

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for path, n, says in (('more', '12 of 12', 'all of'), ('data', '8 of 40', '20% of every class')):
            status, out, err = simam_ema('evaluate', run, '--path', tmp_path/path)
            assert status == 0 and f'{n} images: {says}' in out, out + err
        shutil.copytree(tmp_path/'data', tmp_path/'copy')
        config = json.loads((run/'config.json').read_text())
        from simam_ema_fastai.data.dls import load_samples
        (run/'config.json').write_text(json.dumps(config | dict(digest=load_samples('folder', tmp_path/'data').digest())))
        status, out, err = simam_ema('evaluate', run, '--path', tmp_path/'copy')
        assert status == 0 and '8 of 40 images: 20%' in out, out + err  # the run's own data, elsewhere: not what it was trained on
        for part, n in (('train', 4), ('valid', 3)):
            for c in 'ab':
                (tmp_path/'split'/part/c).mkdir(parents=True)
                for i in range(n): Image.fromarray((rng.random((40, 40))*4000).astype(np.uint16)).save(tmp_path/'split'/part/c/f'{i}.png')
        status, out, err = simam_ema('evaluate', run, '--data', 'folder', '--path', tmp_path/'split')
        assert status == 0 and '6 of 14 images: what lies in' in out and 'valid' in out, out + err
