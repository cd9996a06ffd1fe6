"A report needs no network: it is written where PyTorch cannot be imported, the same to the byte, in little memory."
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simam_ema_fastai.cli import main
from simam_ema_fastai.options import commands
from simam_ema_fastai.report.fake import fake_gates, fake_grid

blocked = ('torch', 'fastai', 'timm', 'torchvision')
slim = f"""import sys
from pathlib import Path
class Blocked:
    def find_spec(name, *_):
        if name.partition('.')[0] in {blocked}: raise ImportError(name)
sys.meta_path.insert(0, Blocked)
from simam_ema_fastai.cli import main
status = main(sys.argv[1:])
"""


def python(code, *args):
    "Run `code` in a process of its own; what it printed."
    r = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert r.returncode == 0, r.stderr
    return r.stdout


def contents(folder):
    return {f.relative_to(folder): f.read_bytes() for f in Path(folder).rglob('*') if f.is_file()}


def test_a_report_is_the_same_without_pytorch(tmp_path):
    runs = tmp_path/'runs'
    small = ['--data', 'digits', '--size', '32', '--n-train', '64', '--n-valid', '50', '--arch', 'resnet18',
             '--epochs', '1', '--weights', 'none', '--bs', '16', '--strategies', 'uniform', '--no-report']
    assert main(['ablate', *small, '--variants', 'baseline,ema@residual34', '--out', str(runs)]) == 0
    assert main(['report', str(runs), '--out', str(tmp_path/'a')]) == 0  # makes the maps, which takes the networks
    python(f'{slim}sys.exit(status)', 'report', runs, '--out', tmp_path/'b')
    a, b = contents(tmp_path/'a'), contents(tmp_path/'b')
    assert a == b
    assert {Path(f) for f in ('report.html', 'report.md', 'gates.csv', 'figures/gains.pdf')} <= {*a}
    assert a[Path('report.html')].count(b'<img') >= 12  # the images that changed most, with their maps


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='the kernel does not tell the peak of the memory')
def test_forty_runs_take_little_memory(tmp_path):
    variants = 'baseline', 'simam', 'ema', 'hybrid', 'ema_identity'
    runs = fake_grid(tmp_path/'runs', {v: .7 + .02*i for i,v in enumerate(variants)}, (1, 2, 3, 4),
                     ('uniform', 'discriminative'), n=500)
    fake_gates(runs, 'ema', {3: .5, 4: .6}, {3: .9, 4: .6})
    said = python(f"{slim}print(Path('/proc/self/status').read_text())", 'report', runs)
    peak = int(re.search(r'VmHWM:\s+(\d+) kB', said)[1])/1024  # MiB; `ru_maxrss` would be that of this process too
    assert 'report.html' in said and peak < 400
    assert '40 finished runs' in (runs/'report'/'report.md').read_text()


def test_help_imports_next_to_nothing():
    heavy = *blocked, 'numpy', 'pandas', 'PIL', 'matplotlib', 'scipy', 'sklearn'
    code = """import contextlib, io, sys
from simam_ema_fastai.cli import main
for args in [['--help'], *([c, '--help'] for c in sys.argv[1:])]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(args)
print(*sorted(m for m in sys.modules if '.' not in m))"""
    assert not {*heavy} & {*python(code, *commands).split()}
