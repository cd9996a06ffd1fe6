"""What a bare CUDA machine without network lacks, as files that can be copied one by one, in any order:

    python scripts/gpu/pack.py OUT [--data DIR] [--runs RUNS] [--tiny]

The package and those of its requirements that image.txt does not list, ResNet-50's weights with 16-bit convolutions, Tiny ImageNet-200, the queue,
and what is done already according to RUNS. The same content gives the same files: made again, a pack differs where SHA256SUMS does."""
import argparse
import configparser
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import steps
import torch
from archive import write_archives
from torch.nn.functional import interpolate

from simam_ema_fastai.core import UserError, file_hash, write_json, write_text
from simam_ema_fastai.data.tiny_imagenet import tiny_imagenet
from simam_ema_fastai.data.transforms import RGBImage
from simam_ema_fastai.models.create import create_model
from simam_ema_fastai.models.weights import Weights, load_weights

here = Path(__file__).resolve().parent
root = here.parent.parent
left_out = ('spacy',) # fastai's text models need it, nothing here imports them

def _canonical(name:str) -> str: return re.sub('[-_.]+', '-', name).lower()

def _uv(*args) -> str:
    r = subprocess.run(['uv', *map(str, args)], capture_output=True, text=True)
    if r.returncode: raise UserError(f"uv {args[0]} {args[1]} failed: {r.stderr.strip()}")
    return r.stdout

def closure(
    image:list[str], # What the machine has: NAME or NAME==VERSION
    target:tuple # uv's arguments for its Python and platform
) -> list[str]: # NAME==VERSION
    "What the package requires, and what that requires, down to the last, without what the image has; in the versions of this environment, where the tests ran."
    settings = configparser.ConfigParser(interpolation=None, delimiters='=')
    settings.read(root/'settings.ini')
    there = {_canonical(l.split('==')[0]) for l in image}
    tested = [f'{d.name}=={d.version}' for d in distributions() if _canonical(d.name) not in there and not _canonical(d.name).startswith(('nvidia-','cuda-'))]
    lists = dict(wanted=settings['DEFAULT']['requirements'].split(), versions=[l for l in image if '==' in l] + tested, excluded=left_out)
    with tempfile.TemporaryDirectory() as d:
        for name, lines in lists.items(): (Path(d)/name).write_text('\n'.join(lines))
        out = _uv('pip', 'compile', Path(d)/'wanted', '-c', Path(d)/'versions', '--excludes', Path(d)/'excluded', *target, '-q', '--no-header', '--no-annotate')
    return [l for l in out.split() if _canonical(l.split('==')[0]) not in there]

def build_site(site:Path, requirements:list[str], target:tuple):
    "Install `requirements` and the package itself into the folder `site`, source distributions built."
    install = lambda *what: _uv('pip', 'install', '--target', site, '--no-deps', *target, *what)
    install(*requirements)
    with tempfile.TemporaryDirectory() as d:  # setuptools leaves its build folders where the source lies
        for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in', 'simam_ema_fastai'):
            (shutil.copytree if (root/name).is_dir() else shutil.copy)(root/name, Path(d)/name)
        install(d)
    for f in site.rglob('__pycache__'): shutil.rmtree(f)
    for f in site.glob('*.dist-info/*'):
        if f.name in ('direct_url.json', 'uv_cache.json', 'RECORD'): f.unlink()  # where and when it was installed

def halved(w:Weights) -> Weights:
    "Convolutions and head in 16 bits, norms as they are; a model takes them up in its own precision."
    return replace(w, state_dict={k: v.half() if v.ndim > 1 else v for k,v in w.state_dict.items()}, source=f'{w.source}, stored in 16 bits')

def moved(a:Weights, b:Weights, files:list[Path], bs:int=8) -> tuple[int,float]: # How many pictures get the same Top-1 answer; the largest change of a probability
    "How far apart `a` and `b` answer among ImageNet's 1,000 classes."
    mean, std = (torch.tensor(s)[:,None,None] for s in a.stats)
    models = [create_model('baseline', 1000, 'resnet50', w).eval() for w in (a, b)]
    same, change = 0, 0.
    with torch.inference_mode():
        for i in range(0, len(files), bs):
            x = torch.stack([torch.from_numpy(np.array(RGBImage.create(f))).permute(2,0,1)/255 for f in files[i:i+bs]])
            x = interpolate((x - mean)/std, size=224, mode='bilinear', antialias=True)
            p, q = (m(x).softmax(1) for m in models)
            same, change = same + int((p.argmax(1) == q.argmax(1)).sum()), max(change, float((p - q).abs().max()))
    return same, change

def pictures(path:Path|None, n_classes:int|None, tmp:Path) -> Iterator[tuple[Path,str]]:
    "Every file of Tiny ImageNet-200 that training takes, with its name in the pack; of the first `n_classes` only, if given."
    s = tiny_imagenet(path)
    folder, inside = s.files[0].parents[3], 'home/tiny_imagenet/tiny-imagenet-200'
    wnids = (folder/'wnids.txt').read_text().split()[:n_classes]
    wanted, kept = set(wnids), set(s.classes[:n_classes])
    for name, column in (('wnids.txt', 0), ('words.txt', 0), ('val/val_annotations.txt', 1)):
        rows = [l for l in (folder/name).read_text(encoding='utf-8').splitlines() if l.split('\t')[column] in wanted]
        write_text(tmp/name, '\n'.join(rows) + '\n')
        yield tmp/name, f'{inside}/{name}'
    for f,l in zip(s.files, s.labels):
        if l in kept: yield f, f'{inside}/{f.relative_to(folder)}'

def pack(out:Path, data:Path|None, image:list[str], python:str, platform:str, mb:float, tiny:bool, runs:Path|None):
    "Write the pack to `out`; SHA256SUMS comes last."
    (out/'SHA256SUMS').unlink(missing_ok=True)
    commit = subprocess.run(['git', '-C', root, 'describe', '--always', '--abbrev=40', '--dirty=+', '--exclude=*'], capture_output=True, text=True).stdout.strip() or None
    target = ('--python-version', python, '--python-platform', platform)
    with tempfile.TemporaryDirectory() as d:
        tmp, archives = Path(d), []
        def add(stem, groups, mb=mb):
            archives.extend(write_archives(out, stem, groups, mb))
            print(f'{stem}: ' + ', '.join(f'{f.stat().st_size/1e6:.1f} MB' for f in archives if f.name.startswith(f'{stem}-')), flush=True)

        requirements = closure(image, target)
        print(f'{len(requirements)} packages: {" ".join(requirements)}', flush=True)
        build_site(tmp/'site', requirements, target)
        pretrained = load_weights('npm', 'resnet50')
        halved(pretrained).save(tmp/'resnet50-npm.pth')
        files = list(pictures(data, 3 if tiny else None, tmp))
        valid = [f for f,name in files if '/val/images/' in name]
        same, change = moved(pretrained, load_weights(tmp/'resnet50-npm.pth', 'resnet50'), valid[::len(valid)//32][:32])
        print(f'weights in 16 bits: {same} of 32 Top-1 answers are the same, no probability moved by more than {change:.1g}', flush=True)
        if change > .01: raise UserError('16 bits are too few for these weights')
        write_json(tmp/'pack.json', dict(commit=commit, python=python, requirements=requirements, left_out=left_out, weights=halved(pretrained).source, tiny=tiny))
        done, frozen, failed = steps.state_of(runs) if runs else ({}, None, {})
        write_json(tmp/'state.json', dict(done=done, recipe=frozen, failed=failed))

        scripts = [(here/f, f'queue/{f}') for f in ('check.py', 'run_queue.py', 'steps.py', 'archive.py')] + [(here.parent/'gpu_check.py', 'queue/gpu_check.py')]
        site = [(f, f'site/{f.relative_to(tmp/"site")}') for f in sorted((tmp/'site').rglob('*')) if f.is_file()]
        add('state', [[(tmp/'state.json', 'state.json')]])
        add('base', [[*site, *scripts, (tmp/'pack.json', 'pack.json')], [(tmp/'resnet50-npm.pth', 'home/resnet50-npm.pth')]])
        add('data', [[f] for f in files], 2 if tiny else mb)
    for f in out.glob('*-*.tar.gz'):
        if f not in archives: f.unlink()
    shutil.copy(here/'setup.sh', out/'setup.sh')
    write_text(out/'SHA256SUMS', ''.join(f'{file_hash(f)}  {f.name}\n' for f in archives))
    print(f'{len(archives)} parts, {sum(f.stat().st_size for f in archives)/1e6:.0f} MB in {out}; {len(done)} steps are done')

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('out', type=Path, help='folder of the pack')
    p.add_argument('--data', type=Path, help="where Tiny ImageNet-200 lies; the package's own place if left out")
    p.add_argument('--image', type=Path, default=here/'image.txt', help='what the machine has, as `python3 -m pip list --format=freeze` prints it there')
    p.add_argument('--python', default='3.12.3', help="the machine's Python")
    p.add_argument('--platform', default='x86_64-manylinux_2_28', help='the machine, as uv names it')
    p.add_argument('--mb', type=float, default=58, help='largest file')
    p.add_argument('--runs', type=Path, help='what merge.py brought together, to be gone on from')
    p.add_argument('--tiny', action='store_true', help='three classes, for a rehearsal')
    a = p.parse_args()
    try: pack(a.out.absolute(), a.data, a.image.read_text().split(), a.python, a.platform, a.mb, a.tiny, a.runs)
    except (UserError, ValueError) as e: print(f'pack: {e}', file=sys.stderr); sys.exit(2)

if __name__ == '__main__': main()
