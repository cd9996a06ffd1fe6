"The cache: filled by several processes at once, and read-only."
import os
import shutil
import subprocess
import sys

import pytest

from simam_ema_fastai.data.dls import get_dls

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='POSIX permissions')

read_digits = '''
import os, sys, warnings
import sklearn.datasets
from simam_ema_fastai.data.dls import get_dls
warnings.showwarning = lambda m, *_, **__: print('said:', m)
digits = sklearn.datasets.load_digits()
sklearn.datasets.load_digits = lambda: digits
if sys.argv[1] == 'nobody' and os.geteuid() == 0: os.setegid(65534), os.seteuid(65534)  # root may write everything
for loader in sys.argv[2:]:
    try: dls = get_dls('digits', bs=16, n_train=160, n_valid=80, loader=loader)
    except OSError as e: print('refused', e)
    else: print(dls.loader, dls.digest, len(dls.train.one_batch()[1]))
'''


def start(home, user, *loaders):
    env = os.environ | dict(SIMAM_EMA_HOME=str(home), PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, '-W', 'default', '-c', read_digits, user, *loaders]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def answer(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out.splitlines()


def test_several_first_processes(tmp_path):
    digest = get_dls('digits', bs=16, n_train=160, n_valid=80).digest
    answers = [answer(p) for p in [start(tmp_path, 'me', 'auto') for _ in range(2)]]
    assert answers == [[f'decoded {digest} 16']]*2
    assert not [p for p in tmp_path.rglob('*') if p.suffix in ('.lock', '.tmp')]
    assert len(list((tmp_path/'decoded').iterdir())) == 1


def test_only_readable(tmp_path):
    "A map that exists needs no write permission; without one, 'auto' reads the files and says so in one line."
    home = tmp_path/'home'
    first, = answer(start(home, 'me', 'auto'))
    for p in (tmp_path, *tmp_path.parents[:-2]):
        if p.stat().st_uid == os.geteuid() and not p.stat().st_mode & 0o005: os.chmod(p, 0o755)  # pytest's own folders
    def set_modes(d, f):
        for p in [home, *home.rglob('*')]: os.chmod(p, d if p.is_dir() else f)
    set_modes(0o555, 0o444)
    assert answer(start(home, 'nobody', 'auto', 'decoded')) == [first, first]
    set_modes(0o755, 0o644)
    shutil.rmtree(home/'decoded')
    set_modes(0o555, 0o444)
    said, files, refused = answer(start(home, 'nobody', 'auto', 'decoded'))
    assert 'cannot be written (Permission denied): the images are read from their files' in said
    assert files == first.replace('decoded', 'files') and 'Permission denied' in refused
    set_modes(0o755, 0o644)
