import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from filelock import FileLock

from simam_ema_fastai.cli import main
from simam_ema_fastai.core.cache import cache_dir


@pytest.fixture(scope='session')
def digits_args():
    "A training that takes seconds: real digits, three epochs, the smallest ResNet."
    return ['--data', 'digits', '--arch', 'resnet18', '--weights', 'none', '--n-train', '256', '--n-valid', '100',
            '--epochs', '3', '--freeze-epochs', '1']


class Command:
    "The command line: called, it runs in this process, which saves the imports; started, in one of its own."
    def __call__(self, *args):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: status = main(list(map(str, args)))
            except SystemExit as e: status = e.code
        return status, out.getvalue(), err.getvalue()

    def start(self, *args, **kwargs):
        argv = [Path(sys.executable).with_name('simam_ema'), *map(str, args)]
        env = os.environ | {'PYTHONUNBUFFERED': '1'}
        def heed(): signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
        if os.name == 'posix': kwargs['preexec_fn'] = heed
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **kwargs)


@pytest.fixture(scope='session')
def simam_ema(): return Command()


@pytest.fixture(scope='session')
def root(): return Path(__file__).parent.parent


@pytest.fixture(scope='session')
def settings(root):
    "What settings.ini says."
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


@pytest.fixture(scope='session')
def uv():
    "The path of uv, also where this environment is not activated."
    found = shutil.which('uv', path=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
    if found is None: pytest.skip('uv is needed: pip install uv')
    return found


packages = ['puppeteer-core@24.43.1', 'axe-core@4.14.1']


@pytest.fixture(scope='session')
def browser():
    "Chromium's path, and a node_modules with what drives it and what judges the page."
    chromium = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
    if chromium is None: pytest.skip('no Chromium on this machine')
    if shutil.which('npm') is None: pytest.skip('no npm on this machine')
    folder = cache_dir()/'page_check'
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder/'.lock'):
        if not all((folder/'node_modules'/p.split('@')[0]).is_dir() for p in packages):
            install = ['npm', 'install', '--prefix', folder, '--no-audit', '--no-fund', *packages]
            r = subprocess.run(install, capture_output=True, text=True)
            if r.returncode: pytest.skip(f'npm cannot install {packages}: {r.stderr.strip()[-200:]}')
    return chromium, folder/'node_modules'


@pytest.fixture(scope='session')
def look(browser, root):
    "What a check, a .mjs here, finds wrong with a page; given where, it leaves screenshots."
    chromium, modules = browser
    def look(check, page, *shots, **env):
        argv, env = ['node', root/'tests'/check, page, chromium, modules, *shots], {k: str(v) for k,v in env.items()}
        r = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=os.environ | env)
        assert r.returncode == 0, r.stderr
        return json.loads(r.stdout.splitlines()[-1])
    return look
