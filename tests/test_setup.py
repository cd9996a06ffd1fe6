"scripts/venv.sh, which both README commands begin with: what it makes, makes anew, and says when it cannot."
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(shutil.which('bash') is None, reason='needs bash')


@pytest.fixture
def project(root, tmp_path):
    "A project of the same build that needs almost nothing."
    needed = ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'MANIFEST.in', 'CHANGELOG.md')
    for name in needed: shutil.copy(root/name, tmp_path)
    shutil.copytree(root/'scripts', tmp_path/'scripts', ignore=lambda d, names: {n for n in names if n != 'venv.sh'})
    lines = (root/'settings.ini').read_text(encoding='utf-8').splitlines()
    names = [l.split(' = ')[0] for l in lines if l.partition(' = ')[0].endswith('requirements')]
    kept = [l for l in lines if l.partition(' = ')[0] not in names] + [f'{n} = iniconfig' for n in names]
    (tmp_path/'settings.ini').write_text('\n'.join(kept) + '\n', encoding='utf-8')
    (tmp_path/'simam_ema_fastai').mkdir()
    (tmp_path/'simam_ema_fastai'/'__init__.py').touch()
    (tmp_path/'requirements').mkdir()
    (tmp_path/'requirements'/'demo.txt').write_text('iniconfig==2.1.0\n')
    return tmp_path


@pytest.fixture
def setup(project):
    "Set up and ask which iniconfig there is: the lines on standard output and those on standard error."
    def setup(status=0, cwd=project, **env):
        ask = "python -c 'import importlib.metadata as m; print(m.version(\"iniconfig\"))'"
        command = f'set -euo pipefail; . scripts/venv.sh demo; {ask}'
        outer = {k: v for k, v in os.environ.items() if k not in ('VIRTUAL_ENV', 'PYTHONPATH', 'LATEST')}
        env = outer | {'PYTHON': sys.executable} | env
        r = subprocess.run(['bash', '-c', command], cwd=cwd, capture_output=True, text=True, env=env)
        assert r.returncode == status, r.stdout + r.stderr
        return r.stdout.splitlines(), r.stderr.splitlines()
    return setup


def test_made_once_and_made_anew(project, setup):
    out, err = setup()
    assert out[-1] == '2.1.0' and out[0].startswith('installing') and not err
    assert setup() == (['2.1.0'], [])  # nothing is left to do

    (project/'.venv'/'simam_ema_fastai'/'unfinished').touch()  # interrupted while it installed
    shutil.rmtree(next((project/'.venv').rglob('iniconfig')))  # with a package cut in half
    out, err = setup()
    assert 'was never finished: making it anew' in out[0] and out[-1] == '2.1.0' and not err

    shutil.rmtree(project/'.venv'/'simam_ema_fastai')  # as an earlier version made it
    assert 'from an earlier version' in setup()[0][0]

    python = next(p for p in (project/'.venv'/'bin'/'python', project/'.venv'/'Scripts'/'python.exe') if p.exists())
    python.unlink()  # the Python it stood on has gone
    out, err = setup()
    assert 'making it anew' in out[0] and out[-1] == '2.1.0'

    (project/'requirements'/'demo.txt').write_text('iniconfig==2.0.0\n')  # locked anew: brought up to date in place
    out, err = setup()
    assert out[0].startswith('installing') and out[-1] == '2.0.0'
    newest = setup(LATEST='1')[0][-1]
    assert tuple(map(int, newest.split('.'))) > (2, 1, 0)


def test_a_lock_that_cannot_be_had(project, setup):
    (project/'requirements'/'demo.txt').write_text('iniconfig==99\n')
    out, err = setup()
    begin, end = 'the locked versions cannot be had here (', '): taking what settings.ini allows'
    assert out[-1] != '99' and len(err) == 1 and err[0].startswith(begin) and err[0].endswith(end)


@pytest.mark.parametrize('python', ['nowhere', 'old'])
def test_python_is_old_or_missing(project, setup, python):
    (project/'old').write_text('#!/bin/sh\nexit 1\n')
    (project/'old').chmod(0o755)
    says = f"Python 3.10 or later is needed; './{python}' is older or missing. Set PYTHON to another one."
    assert setup(2, PYTHON=f'./{python}') == ([], [says])


def test_no_network(project, setup):
    "Every connection is refused, and nothing is cached."
    nowhere = {k: 'http://127.0.0.1:9' for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY')}
    uv = {'UV_CACHE_DIR': str(project/'cache'), 'UV_HTTP_RETRIES': '0'}
    pip = {'PIP_CONFIG_FILE': os.devnull, 'PIP_FIND_LINKS': '', 'PIP_NO_CACHE_DIR': '1', 'PIP_RETRIES': '0'}
    out, err = setup(2, **nowhere, **uv, **pip)
    assert err[-1].startswith('no connection to the package index') and not any('Traceback' in l for l in err)
    assert setup()[0][-1] == '2.1.0'  # with a network again


@pytest.mark.parametrize('mib', [12, 60])
def test_disk_is_full(project, setup, tmp_path_factory, mib):
    "The project lies on a file system without room for the environment, or for what is installed into it."
    disk = tmp_path_factory.mktemp('disk')
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={mib}m', 'tmpfs', disk]
    if sys.platform != 'linux' or subprocess.run(mount, capture_output=True).returncode: pytest.skip('cannot mount')
    try:
        shutil.copytree(project, disk, dirs_exist_ok=True)
        (disk/'requirements'/'demo.txt').write_text('scipy\n')
        out, err = setup(2, cwd=disk)
        assert len(err) <= 2 and err[-1].startswith('no space left on the disk'), err
    finally: subprocess.run(['umount', disk], check=True)
