"How sure a model is: one temperature in every form of it, and thresholds that are asked for as '97% right'."
import json

import numpy as np
import pandas as pd
import pytest

from simam_ema_fastai.data.datasets import load_samples
from simam_ema_fastai.deploy.load import load_exported
from simam_ema_fastai.deploy.onnx import to_onnx
from simam_ema_fastai.deploy.predict import predict_images
from simam_ema_fastai.deploy.quantize import to_int8
from simam_ema_fastai.runtime.classifier import open_model


@pytest.fixture(scope='module')
def trained(simam_ema, digits_args, tmp_path_factory):
    "A run on digits with its 359 validation images, and its ONNX forms."
    out = tmp_path_factory.mktemp('thresholds')
    args = [*digits_args, '--n-train', 600, '--n-valid', 359]
    status, _, err = simam_ema('train', '--variant', 'baseline', *args, '--no-report', '--out', out)
    assert status == 0, err
    run = next(out.glob('*/model.json')).parent
    learn, files = load_exported(run), load_samples('digits').files
    to_onnx(learn, out/'m.onnx', preprocess=True)
    to_int8(learn, out/'m.int8.onnx', files[:32])
    return run, out/'m.onnx', out/'m.int8.onnx', files[:40]


def test_every_form_has_the_temperature_of_the_run(trained):
    run, onnx, int8, files = trained
    calibration = json.loads((run/'model.json').read_text())['calibration']
    t = calibration['temperature']
    assert abs(t - 1) > .03, 'too close to 1 to tell whether it was applied'
    images = pd.read_csv(run/'calibration.csv')
    assert calibration['fitted_on'] + calibration['measured_on'] == len(images) == 359
    raw = load_exported(run)
    raw.calibration = None
    plain = predict_images(raw, files, k=10)
    forms = dict(bundle=run, pickle=run/'model.pkl', onnx=onnx)
    probs = {name: predict_images(path, files, k=10, trust=True) for name, path in forms.items()}
    for name, path in forms.items():
        rows = open_model(path, trust=True).classify(files, k=10)
        probs[f'{name} opened'] = pd.DataFrame(dict(label=[r[0][0] for r in rows], prob=[r[0][1] for r in rows]))
    columns = [f'{what}{i}' for i in range(1, 11) for what in ('label', 'prob')]
    by_class = [dict(zip(row[::2], row[1::2])) for row in plain[columns].values.tolist()]
    scaled = [max(p.values())**(1/t)/sum(v**(1/t) for v in p.values()) for p in by_class]
    for name, found in probs.items():
        assert found.label.tolist() == plain.label.tolist(), name
        assert np.allclose(found.prob, scaled, atol=1e-4), name
    assert not np.allclose(plain.prob, scaled, atol=1e-3)
    assert open_model(int8).about['calibration'] == calibration | dict(thresholds=[])


@pytest.mark.parametrize('form', [0, 1], ids=['bundle', 'onnx'])
def test_an_accuracy_becomes_a_threshold(trained, simam_ema, tmp_path, form):
    rows = json.loads((trained[0]/'model.json').read_text())['calibration']['thresholds']
    wanted = sorted(r['lower'] for r in rows)[-2] - 1e-4
    row = min((r for r in rows if r['lower'] >= wanted), key=lambda r: r['threshold'])
    status, out, err = simam_ema('predict', trained[form], *trained[3], '--accuracy', f'{100*wanted}%',
                                 '--out', tmp_path/'o.csv')
    assert status == 0 and f"probabilities from {row['threshold']:.3f} on" in err, err
    df = pd.read_csv(tmp_path/'o.csv')
    assert len(df) == 40, 'none is dropped'
    unsure = df.label == 'unsure'  # probabilities are rounded in the file
    assert unsure[df.prob < row['threshold'] - 1e-6].all() and not unsure[df.prob > row['threshold'] + 1e-6].any()
    assert (f', {unsure.sum()} unsure' in out) == bool(unsure.any())


def test_what_no_threshold_reaches(trained, simam_ema):
    run, onnx, int8, files = trained
    for model, args, want in [(run, ['--accuracy', '99.9%'], 'images at hand show at most'),
                              (onnx, ['--accuracy', '99.9%'], 'images at hand show at most'),
                              (int8, ['--accuracy', '80%'], 'or it is in eight bits'),
                              (run, ['--accuracy', 'all'], "accuracy 'all'"),
                              (run, ['--accuracy', '97%', '--min-confidence', .5], 'give one of them')]:
        status, out, err = simam_ema('predict', model, files[0], *args)
        assert (status, err.count('\n')) == (2, 1) and want in err, err
