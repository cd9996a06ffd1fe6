"""The package as users get it: built, installed into an environment with nothing of the suite's own, and used from
training to prediction; with the newest versions that its requirements allow, with the lowest, and with those that
predict from an ONNX file alone."""
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version

import pandas as pd
import pytest

from simam_ema_fastai.cli import commands

scripts = 'Scripts' if os.name == 'nt' else 'bin'


def ran(*command, **kwargs):
    "`command`, ended, with what it printed."
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


class Environment:
    "A virtual environment; its programs see neither the checkout nor anybody's cache."
    def __init__(self, uv, folder):
        self.uv, self.folder, self.work = uv, folder, folder/'work'
        subprocess.run([uv, 'venv', '-q', '--python', sys.executable, folder], check=True)
        self.work.mkdir()

    def install(self, *args):
        r = ran(self.uv, 'pip', 'install', '-q', '--python', self.folder, *args)
        assert r.returncode == 0, r.stderr

    def __call__(self, program, *args, status=0):
        "What `program` of this environment prints, having ended with `status`."
        outer = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
        env = outer | {'SIMAM_EMA_HOME': str(self.folder/'cache'), 'MPLBACKEND': 'agg', 'PYTHONUTF8': '1'}
        r = ran(self.folder/scripts/program, *args, cwd=self.work, encoding='utf-8', env=env)
        assert r.returncode == status, f'{program} {args}: {r.returncode}\n{r.stdout}\n{r.stderr}'
        return r.stdout + r.stderr

    def versions(self):
        listed = ran(self.uv, 'pip', 'list', '-q', '--format', 'json', '--python', self.folder, check=True)
        return {p['name']: p['version'] for p in json.loads(listed.stdout)}


@pytest.fixture(scope='module')
def built(root, uv, tmp_path_factory):
    "The wheel, made from the sdist as package indexes and users do."
    out = tmp_path_factory.mktemp('dist')
    r = ran(uv, 'build', '-q', '-o', out, root)
    assert r.returncode == 0, r.stderr
    (wheel,), (sdist,) = out.glob('*.whl'), out.glob('*.tar.gz')
    return wheel, sdist


def test_wheel_and_sdist_hold_every_file(built, root, settings):
    wheel, sdist = built
    name = f"{settings['lib_name']}-{settings['version']}"
    tracked = ran('git', 'ls-files', settings['lib_path'], cwd=root).stdout.split()
    present = [p for p in (root/settings['lib_path']).rglob('*') if p.is_file() and p.suffix != '.pyc']
    files = tracked or [p.relative_to(root).as_posix() for p in present]
    with zipfile.ZipFile(wheel) as z:
        assert {*files, f'{name}.dist-info/licenses/LICENSE'} <= set(z.namelist())
        metadata = z.read(f'{name}.dist-info/METADATA').decode()
    files += ['LICENSE', 'CHANGELOG.md', 'README.md', 'settings.ini']
    with tarfile.open(sdist) as t: assert {f'{name}/{f}' for f in files} <= set(t.getnames())
    lines = ['License-Expression: Apache-2.0', 'License-File: LICENSE', 'Description-Content-Type: text/markdown',
             f"Version: {settings['version']}", f"Requires-Python: >={settings['min_python']}"]
    for line in lines: assert line in metadata
    assert '# simam_ema_fastai' in metadata


def use(env):
    "A user's first minutes, in the order of the README; every file that comes of it is looked at."
    for command in commands: assert f'usage: simam_ema {command}' in env('simam_ema', command, '--help')
    assert env('simam_ema', '--version').strip() == env.versions()['simam-ema-fastai']
    tiny = ['--n-train', '128', '--n-valid', '60', '--bs', '32', '--epochs', '1', '--freeze-epochs', '0']
    env('simam_ema', 'ablate', '--data', 'digits', '--arch', 'resnet18', '--weights', 'none',
        '--variants', 'baseline,hybrid', *tiny, '--out', 'runs')
    assert 'runs' in env('simam_ema', 'report', 'runs')
    assert (env.work/'runs'/'report'/'report.html').stat().st_size > 10_000
    run = env.work/'runs'/'hybrid-discriminative+freeze-s1'
    image = env.work/'images'/'seven.png'
    image.parent.mkdir()
    shutil.copy(env.folder/'cache'/'digits'/'0007.png', image)
    env('simam_ema', 'predict', run, image.parent, '--out', 'predictions.csv')
    (label,) = pd.read_csv(env.work/'predictions.csv', dtype=str).label
    code = ('import sys; from fastai.learner import load_learner; '
            'print(load_learner(sys.argv[1]).predict(sys.argv[2])[0])')
    stock = env('python', '-W', 'ignore', '-c', code, run/'model.pkl', image)
    assert stock.split()[-1] == label
    return run, image, label


def for_colab(root):
    "By tutorial: what it opens from its badge, and what its first cell installs."
    for file in sorted((root/'nbs'/'tutorials').glob('*.ipynb')):
        text = '\n'.join(''.join(c['source']) for c in json.loads(file.read_text(encoding='utf-8'))['cells'])
        opened = re.findall(r'\(https://colab.research.google.com/github/(.*?)\)', text)
        installed = re.findall(r'%pip install -q "(.*)"', text)
        assert len(opened) == len(installed), file
        yield from ((file, *both) for both in zip(opened, installed))


def test_tutorials_open_in_colab(root, settings):
    tutorials = list(for_colab(root))
    assert len(tutorials) > 6
    for file, opened, installed in tutorials:
        assert opened == f"{settings['user']}/{settings['repo']}/blob/{settings['branch']}/nbs/tutorials/{file.name}"
        extras = re.fullmatch(rf"{settings['lib_name']}\[(.*)\] @ git\+{re.escape(settings['git_url'])}", installed)[1]
        for extra in extras.split(','): assert f'{extra}_requirements' in settings


def test_as_a_user(built, uv, root, tmp_path):
    "The newest that `pip install` resolves, and nothing that is there for the suite alone."
    wheel, _ = built
    env = Environment(uv, tmp_path/'venv')
    env.install(wheel)
    run, image, label = use(env)
    assert "pip install 'simam_ema_fastai[export]'" in env('simam_ema', 'export', run, '--onnx', 'model.onnx', status=2)
    for installed in {installed for *_, installed in for_colab(root)}:  # the checkout in the place of its code host
        env.install(re.sub(r'git\+.*', wheel.as_uri(), installed))
    env('simam_ema', 'export', run, '--onnx', 'model.onnx')
    assert f' {label} ' in env('simam_ema', 'predict', 'model.onnx', image)
    subprocess.run([uv, 'pip', 'check', '-q', '--python', env.folder], check=True)

    suite = {p: version(p) for p in ('fastai', 'fastcore')}
    users = {p: v for p, v in env.versions().items() if p in suite}
    advice = 'renew the locked requirements (bash scripts/lock.sh) and see what still holds'
    assert suite == users, f'this suite runs on {suite}, users get {users}: {advice}'


def test_lowest_versions(built, uv, tmp_path):
    "The lower bounds are true: the same with the lowest version of each direct requirement."
    wheel, _ = built
    env = Environment(uv, tmp_path/'venv')
    env.install('--resolution', 'lowest-direct', f'simam_ema_fastai[export] @ {wheel.as_uri()}')
    run, image, label = use(env)
    env('simam_ema', 'export', run, '--onnx', 'model.onnx')
    assert f' {label} ' in env('simam_ema', 'predict', 'model.onnx', image)


def test_slim(built, uv, root, tmp_path):
    "`pip install --no-deps` and onnxruntime, numpy and Pillow: what predicts from an ONNX file."
    wheel, _ = built
    env = Environment(uv, tmp_path/'venv')
    env.install('--no-deps', wheel)
    env.install('onnxruntime', 'numpy', 'pillow')
    from simam_ema_fastai.data.datasets import load_samples
    image = env.work/'three.png'
    shutil.copy(load_samples('digits').files[3], image)
    model = root/'tests'/'data'/'bundle_v1'/'model.onnx'
    assert env('simam_ema', 'predict', model, env.work, '--out', 'out.csv').startswith('1 prediction')
    assert 'three.png: 3 ' in env('simam_ema', 'predict', model, image)


@pytest.mark.parametrize('extra', ['demo', 'backbones', 'report', 'export', 'hub', 'serve', 'app', 'cluster', 'tune',
                                   'log', 'dev'])
def test_extras_resolve(built, uv, settings, tmp_path, extra):
    "Each extra can be installed outside a checkout, with all its requirements kept."
    assert f'{extra}_requirements' in settings
    (tmp_path/'in.txt').write_text(f'simam_ema_fastai[{extra}] @ {built[0].as_uri()}\n')
    r = ran(uv, 'pip', 'compile', '-q', tmp_path/'in.txt')
    assert r.returncode == 0 and '\nfastai==' in r.stdout, r.stderr
