import contextlib, io, os, subprocess, sys
from pathlib import Path

import pytest

from simam_ema_fastai.cli import main


@pytest.fixture(scope='session')
def digits_args():
    "A training that takes seconds: real digits, three epochs, the smallest ResNet."
    return ['--data', 'digits', '--arch', 'resnet18', '--weights', 'none', '--n-train', '256', '--n-valid', '100', '--epochs', '3', '--freeze-epochs', '1']


class Command:
    "The command line: called, it runs in this process, which saves the imports; started, in one of its own, as a user runs it."
    def __call__(self, *args):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: status = main(list(map(str, args)))
            except SystemExit as e: status = e.code
        return status, out.getvalue(), err.getvalue()

    def start(self, *args, **kwargs):
        argv = [Path(sys.executable).with_name('simam_ema'), *map(str, args)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ|{'PYTHONUNBUFFERED':'1'}, **kwargs)


@pytest.fixture(scope='session')
def simam_ema(): return Command()


@pytest.fixture(scope='session')
def root(): return Path(__file__).parent.parent
