"""Exported models of every version keep loading; ONNX without PyTorch; predictions that survive `kill -9`.

`python tests/test_runtime.py FOLDER` writes the bundle in data/bundle_v1: a network of 20,000 parameters, trained on
digits for a moment. SIMAM_EMA_KILLS=20 kills more often."""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import simam_ema_fastai.models.backbones as backbones
from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.core.files import write_json
from simam_ema_fastai.data.datasets import load_samples
from simam_ema_fastai.deploy.load import load_exported
from simam_ema_fastai.deploy.predict import predict_images
from simam_ema_fastai.runtime.classifier import open_model
from simam_ema_fastai.runtime.manifest import manifest_digest

bundle = Path(__file__).parent/'data'/'bundle_v1'
tiny = backbones._preact(backbones.PreActBasicBlock, [1,1,1,1], width=4)


def make(folder):
    "Write a small bundle with its ONNX form, and what it answers to the first digits."
    from simam_ema_fastai.data.dls import get_dls
    from simam_ema_fastai.deploy.bundle import write_bundle
    from simam_ema_fastai.deploy.onnx import to_onnx
    from simam_ema_fastai.training.evaluate import evaluate
    from simam_ema_fastai.training.learner import fit_recipe, variant_learner
    from simam_ema_fastai.training.recipe import Recipe
    backbones.archs['tiny'] = tiny
    dls = get_dls('digits')
    recipe = Recipe(epochs=8, freeze_epochs=1, lr=1e-2, backbone_lr_div=1)
    learn = variant_learner(dls, 'hybrid', 'tiny', weights=None, recipe=recipe)
    with learn.no_bar(), learn.no_logging(): fit_recipe(learn)
    write_bundle(learn, folder, evaluate(learn).metrics)
    to_onnx(load_exported(folder), Path(folder)/'model.onnx', preprocess=True)
    df = predict_images(folder, load_samples('digits').files[:20], k=3)
    write_json(Path(folder)/'answers.json', df.drop(columns='item').to_dict('records'))


@pytest.fixture
def arch(monkeypatch): monkeypatch.setitem(backbones.archs, 'tiny', tiny)

@pytest.fixture
def refused(simam_ema):
    def check(*args, says):
        status, out, err = simam_ema(*args)
        assert status == 2 and len(err.splitlines()) == 1 and says in err, f'{status}\n{out}\n{err}'
    return check

@pytest.fixture
def digits(tmp_path):
    "200 digits and two files that are not images."
    files = load_samples('digits').files[:200]
    (tmp_path/'in').mkdir()
    for f in files: (tmp_path/'in'/f.name).symlink_to(f)
    (tmp_path/'in'/'0100x.png').write_bytes(b'not an image')
    (tmp_path/'in'/'cut.png').write_bytes(files[0].read_bytes()[:70])
    return tmp_path/'in'


def test_version_1_answers_as_it_did(arch):
    want = json.loads((bundle/'answers.json').read_text())
    files = load_samples('digits').files[:20]
    for model in (bundle, bundle/'model.onnx'):
        got = predict_images(model, files, k=3)
        assert got.label.tolist() == [r['label'] for r in want]
        probs = [[r[f'prob{i}'] for i in (1,2,3)] for r in want]
        assert np.abs(got[['prob1','prob2','prob3']].values - probs).max() < 1e-5
    learn = load_exported(bundle)
    assert learn.about['variant'] == 'hybrid' and learn.about['metrics']['top1'] > 80


def test_an_answer_of_nan_has_no_label(simam_ema, arch, tmp_path):
    "In PyTorch, behind the runtime's interface, on the command line, in a gate map; and no ONNX file is made of it."
    from simam_ema_fastai.deploy.bundle import write_bundle
    from simam_ema_fastai.deploy.explain import explain_images
    from simam_ema_fastai.deploy.load import as_classifier
    learn, files = load_exported(bundle), load_samples('digits').files[:2]
    for p in list(learn.model.parameters())[-2:]: p.data.fill_(float('nan'))
    write_bundle(learn, tmp_path)
    for call, model in ((predict_images, learn), (predict_images, tmp_path), (explain_images, learn)):
        with pytest.raises(UserError, match='answers NaN or infinity'): call(model, files)
    with pytest.raises(UserError, match='answers NaN or infinity'): as_classifier(learn).classify(files)
    status, out, err = simam_ema('predict', tmp_path, *files)
    assert status == 2 and 'none of the 2 images has an answer' in err
    assert ' has no answer: the network gives NaN or infinity' in out
    status, _, err = simam_ema('export', tmp_path, '--onnx', tmp_path/'x.onnx')
    assert status == 2 and 'NaN or infinity' in err and not (tmp_path/'x.onnx').exists()


def test_committed_bundle_is_small(): assert sum(f.stat().st_size for f in bundle.iterdir()) < 300_000


@pytest.mark.parametrize('file, change, says', [
    ('model.safetensors', lambda b: b[:-9], 'model.safetensors is damaged'),
    ('model.safetensors', lambda b: b[:999] + bytes([b[999] ^ 1]) + b[1000:], 'model.safetensors is damaged'),
    ('model.safetensors', lambda b: b'', 'model.safetensors is damaged'),
    ('model.json', lambda b: b[:-99], 'model.json is damaged'),
    ('model.json', lambda b: b.replace(b'"9"', b'"8"'), 'its digest is wrong'),
    ('model.json', lambda b: b.replace(b'"version": 1', b'"version": 9'), 'is of version 9'),
    ('model.json', lambda b: _nine_classes(b), 'do not fit'),
])
def test_damaged_bundles(refused, arch, tmp_path, file, change, says):
    shutil.copytree(bundle, tmp_path/'b', ignore=shutil.ignore_patterns('*.onnx'))
    (tmp_path/'b'/file).write_bytes(change((bundle/file).read_bytes()))
    refused('predict', tmp_path/'b', load_samples('digits').files[0], says=says)

def _nine_classes(b):
    about = json.loads(b)
    about['classes'].pop()
    return json.dumps(about | dict(digest=manifest_digest(about))).encode()


def test_damaged_onnx(refused, tmp_path):
    data, image = (bundle/'model.onnx').read_bytes(), load_samples('digits').files[0]
    for bad in (data[:-9], data[:len(data)//2], data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], b''):
        (tmp_path/'m.onnx').write_bytes(bad)
        refused('predict', tmp_path/'m.onnx', image, says='m.onnx ')


def test_export_command(simam_ema, refused, arch, digits, tmp_path):
    real = load_samples('digits').files[0].parent
    status, out, err = simam_ema(
        'export', bundle, '--onnx', tmp_path/'m.onnx', '--int8', tmp_path/'small.onnx', '--bundle', tmp_path/'b',
        '--torch-export', tmp_path/'m.pt2', '--pictures', real, '--n', '100')
    assert (status, err) == (0, ''), err
    assert re.search("eight bits, calibrated by [a-z]+: the model's answer for .* of 100 images", out), out
    assert [out.count(f"  {m}: the model's answer") for m in ('minmax', 'percentile', 'entropy')] == [1, 1, 1], out
    files = load_samples('digits').files[-300:]
    a, b, c = (predict_images(m, files, k=1) for m in (bundle, tmp_path/'m.onnx', tmp_path/'small.onnx'))
    assert a.label.tolist() == b.label.tolist() and (a.prob - b.prob).abs().max() < 1e-4
    assert (a.label == c.label).mean() > .9
    assert load_exported(tmp_path/'b').about['metrics'] == load_exported(bundle).about['metrics']
    refused('export', tmp_path/'b'/'model.pkl', '--onnx', tmp_path/'x.onnx', says='is a pickle, which can run any code')
    refused('export', tmp_path/'b', '--int8', tmp_path/'x.onnx', says='eight bits need real images')
    refused('export', bundle, '--int8', tmp_path/'x.onnx', '--pictures', real, '--calibration', 'max',
            says="unknown calibration 'max'")
    refused('export', tmp_path/'b', '--bundle', digits, says='holds other things than an exported learner')


def test_bad_arguments(refused, tmp_path, digits):
    model = bundle/'model.onnx'
    for args, says in [(['--k', '0'], 'k 0'), (['--bs', '0'], 'bs 0'),
                       (['--min-confidence', '2'], 'min_confidence 2.0'),
                       (['--out', tmp_path/'x.txt'], 'ends in .csv or .parquet'), (['--workers', '-1'], 'workers -1')]:
        refused('predict', model, digits, *args, says=says)
    refused('predict', model, tmp_path/'nowhere', says='there is no file or folder')
    refused('export', bundle, says='export to what?')


slim = """import sys
absent = {'torch', 'torchvision', 'fastai', 'fastcore', 'fastprogress', 'pandas', 'scipy', 'matplotlib', 'timm',
          'safetensors', 'filelock'}
class Without:
    def find_spec(self, name, *_):
        if name.split('.')[0] in absent: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
import importlib.util
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in ('torch','fastai') else there(name, *a)
from simam_ema_fastai.__main__ import main
sys.exit(main(sys.argv[1:]))"""

def predicting(*args):
    "`simam_ema predict` where PyTorch and fastai are not installed."
    command = [sys.executable, '-c', slim, 'predict', *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_predict_without_pytorch(digits, tmp_path):
    p = predicting(bundle, digits, '--out', tmp_path/'out.csv', '--min-confidence', .6)
    out, err = p.communicate()
    assert p.returncode == 0, err
    assert out.startswith('200 predictions: ') and ', 2 unreadable' in out and ' unsure' in out, out
    p = predicting(bundle/'model.onnx', digits/'0003.png')
    assert '0003.png: 3 ' in p.communicate()[0]
    p = subprocess.run([sys.executable, '-c', slim, 'train'], capture_output=True, text=True)
    assert p.returncode == 2 and 'PyTorch and fastai are not installed' in p.stderr and len(p.stderr.splitlines()) == 1


def test_predict_takes_what_a_shell_makes_of_a_glob(digits, tmp_path):
    csv = tmp_path/'three.csv'
    p = predicting(bundle/'model.onnx', digits/'0003.png', digits/'cut.png', digits/'0004.png')
    out, err = p.communicate()
    begins = [l[:len(str(digits)) + 9] for l in out.splitlines()]
    assert (p.returncode, err) == (0, '')
    assert begins == [f'{digits}/0003.png', f'{digits}/cut.png ', f'{digits}/0004.png']
    files = [digits/'0003.png', digits/'0004.png', digits/'cut.png']
    out, _ = predicting(bundle, *files, '--out', csv).communicate()
    assert out == f"2 predictions: {csv}, 1 unreadable\n"
    p = predicting(bundle, digits, '--out', csv)
    line = f"simam_ema: {csv} exists already and is not replaced. Delete it, or choose another --out.\n"
    assert (p.communicate()[1], p.returncode) == (line, 2)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full here')
def test_predictions_that_nobody_gets(digits):
    "A closed output, a full disk, a reader that has gone: never status 0."
    argv = [sys.executable, '-c', slim, 'predict', str(bundle), str(digits)]
    for how, status, says in (('>&-', 2, ['standard output is closed']), ('>/dev/full', 2, ['No space left on device']),
                              ('| true; exit ${PIPESTATUS[0]}', 141, [])):
        r = subprocess.run(['bash', '-c', f'"$@" {how}', 'bash', *argv], capture_output=True, text=True)
        lines = r.stderr.splitlines()
        assert r.returncode == status and len(lines) == len(says), (how, r)
        assert all(s in l for s, l in zip(says, lines)), (how, r)


def test_bundle_whose_parts_are_of_different_models(refused, digits, tmp_path):
    shutil.copytree(bundle, tmp_path/'b')
    (tmp_path/'b'/'model.json').write_bytes(_nine_classes((bundle/'model.json').read_bytes()))
    for p in (tmp_path/'b', tmp_path/'b'/'model.json'):
        refused('predict', p, digits/'0003.png', says='model.onnx and model.json in')
    shutil.copy(bundle/'model.onnx', tmp_path/'alone.onnx')
    (tmp_path/'only').mkdir()
    shutil.copy(bundle/'model.onnx', tmp_path/'only')
    for p in (tmp_path/'alone.onnx', tmp_path/'only'):
        assert '0003.png: 3 ' in predicting(p, digits/'0003.png').communicate()[0]


def test_predict_survives_sigkill(digits, tmp_path):
    args = (bundle/'model.onnx', digits, '--bs', 4, '--workers', 1, '--threads', 1, '--k', 10)
    start = time.monotonic()
    assert predicting(*args, '--out', tmp_path/'whole.csv').wait() == 0
    seconds, rng, kills = time.monotonic() - start, random.Random(0), 0
    for _ in range(int(os.environ.get('SIMAM_EMA_KILLS', 4))):
        p = predicting(*args, '--out', tmp_path/'killed.csv')
        try: p.wait(rng.uniform(.3, 1)*seconds)
        except subprocess.TimeoutExpired: p.send_signal(signal.SIGKILL); p.wait(); kills += 1
        if (tmp_path/'killed.csv').exists(): (tmp_path/'killed.csv').unlink()
    assert predicting(*args, '--out', tmp_path/'killed.csv').wait() == 0
    assert kills and (tmp_path/'killed.csv').read_bytes() == (tmp_path/'whole.csv').read_bytes()
    assert not list(tmp_path.glob('*.part*'))


def test_unknown_model_says_so():
    with pytest.raises(UserError, match='no exported learner'): open_model('nowhere')


if __name__ == '__main__': make(sys.argv[1])
