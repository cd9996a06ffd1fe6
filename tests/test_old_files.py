"What version 0.1 wrote (fixtures/v0.1/make.py) opens today, and answers as it did."
import json
import sys

import numpy as np
import pytest

from simam_ema_fastai.core.downloads import unpack_tar
from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.deploy.load import load_exported
from simam_ema_fastai.deploy.predict import predict_images

runs = ['runs/baseline-uniform-s1', 'runs/hybrid-discriminative+freeze-s1']


@pytest.fixture(scope='module')
def old(root, tmp_path_factory):
    pytest.importorskip('timm')  # all but the pickle are MobileNets
    folder = tmp_path_factory.mktemp('v0.1')
    unpack_tar(root/'tests'/'fixtures'/'v0.1'/'models.tar.xz', folder)
    return folder


@pytest.mark.parametrize('model', ['bundle', 'model.onnx', 'model.pkl', *runs])
def test_models_answer_as_they_did(old, model):
    if model == 'model.pkl' and sys.version_info[:2] != (3, 11):
        pytest.skip('a pickle holds code of the Python that wrote it, 3.11')
    got = predict_images(old/model, sorted((old/'images').iterdir()), k=10, trust=True)
    for (_, row), want in zip(got.iterrows(), json.loads((old/'answers.json').read_text())[model], strict=True):
        probs = {row[f'label{i}']: row[f'prob{i}'] for i in range(1, 11)}
        assert probs.keys() == want.keys()
        assert np.allclose([probs[c] for c in want], [*want.values()], atol=1e-4), (probs, want)


def test_a_bundle_says_what_it_said(old):
    about = load_exported(old/'bundle').about
    assert [about[k] for k in ('version', 'variant', 'arch')] == [1, 'hybrid', 'mobilenet_v2']
    assert about['metrics'] == dict(n=32, top1=12.5)
    with pytest.raises(UserError, match='a pickle, which can run any code'): load_exported(old/'model.pkl')


def test_runs_are_runs(old, simam_ema):
    "They evaluate as they did, are done for the command that made them, and have a report."
    for run in runs:
        status, out, err = simam_ema('evaluate', old/run)
        want = json.loads((old/run/'metrics.json').read_text())
        assert status == 0 and f"Top-1 {want['top1']:.2f}%" in out and f"loss {want['loss']:.4f}" in out, out + err
    def written(): return [(old/run/'model.safetensors').stat().st_mtime_ns for run in runs]
    before = written()
    data = ['--data', 'digits', '--n-train', 64, '--n-valid', 32, '--arch', 'mobilenet_v2', '--weights', 'none']
    recipe = ['--epochs', 1, '--freeze-epochs', 0, '--bs', 32, '--no-report']
    status, _, err = simam_ema('ablate', '--variants', 'baseline,hybrid', '--out', old/'runs', *data, *recipe)
    assert status == 0 and written() == before, err
    status, _, err = simam_ema('report', old/'runs', '--no-pictures')
    assert status == 0 and (old/'runs'/'report'/'report.html').exists(), err


def test_the_fixture_is_small(root):
    assert sum(f.stat().st_size for f in (root/'tests'/'fixtures'/'v0.1').iterdir()) < 300_000
