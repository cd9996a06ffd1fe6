"""How many images a second a Hybrid trains on, in fastai's loop, loaders included: as this package does it, over the
modules as their papers' equations say under fastai's defaults (float32, PyTorch's layout, images read in each epoch).

    python scripts/throughput.py --data tiny_imagenet --path tiny-imagenet-200 --n-classes 20 \\
        --settings resnet50:64:32 resnet50:224:8 efficientnet_lite0:64:32 --out results/throughput_cpu

In turns, in one process; writes report.md and throughput.csv."""
import argparse
import contextlib
import io
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException

from simam_ema_fastai.attention.cpp_training import build_gates
from simam_ema_fastai.core.files import write_text
from simam_ema_fastai.data.dls import get_dls
from simam_ema_fastai.experiments.candidates import training_step
from simam_ema_fastai.experiments.environment import environment, provenance
from simam_ema_fastai.experiments.probe import fastest_form, forms
from simam_ema_fastai.experiments.timing import interleaved, paired_ratios
from simam_ema_fastai.models.create import create_model
from simam_ema_fastai.models.variants import get_variant
from simam_ema_fastai.report.formats import to_markdown
from simam_ema_fastai.training.learner import variant_learner
from simam_ema_fastai.training.recipe import Recipe

published = 'simam@spatial34+ema(plain=True)@residual34'
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--data', default='tiny_imagenet')
p.add_argument('--path', type=Path)
p.add_argument('--n-classes', type=int)
p.add_argument('--settings', nargs='+', default=['resnet50:64:32'], metavar='ARCH:SIZE:IMAGES')
p.add_argument('--batches', type=int, default=8, help='of a turn')
p.add_argument('--seconds', type=float, default=120., help='of the turns in each setting')
p.add_argument('--out', type=Path, default=Path('results/throughput_cpu'))
a = p.parse_args()


class Stop(Callback):
    "End a fit after so many batches."
    def __init__(self, batches): self.batches = batches

    def after_batch(self):
        if self.iter + 1 >= self.batches: raise CancelFitException


def training(arch, size, bs, variant, loader, form):
    "A turn of training."
    dls = get_dls(a.data, a.path, size=size, bs=bs, loader=loader, n_classes=a.n_classes)
    recipe = Recipe(strategy='uniform', precision=form.precision, layout=form.layout)
    learn = variant_learner(dls, variant, arch, None, recipe)

    def turn():
        with contextlib.redirect_stdout(io.StringIO()), learn.no_bar(), learn.no_logging():
            learn.fit(1, cbs=Stop(a.batches))
    return turn


def bare(arch, size, bs, form):
    "As many steps on one batch that is there."
    model = create_model(get_variant('hybrid', arch), a.n_classes or 200).to(memory_format=form.memory_format)
    step = training_step(model, torch.randn(bs, 3, size, size), dtype=form.dtype)

    def turn():
        for _ in range(a.batches): step()
    return turn


build_gates()
rows = []
for setting in a.settings:
    arch, size, bs = setting.split(':')[0], *map(int, setting.split(':')[1:])
    found = fastest_form(get_variant('hybrid', arch), a.n_classes or 200, size, bs, forms())
    plain = forms()[0]
    turns = {'fastai': training(arch, size, bs, published, 'files', plain),
             'ours': training(arch, size, bs, 'hybrid', 'decoded', found), 'bare': bare(arch, size, bs, found)}
    t = interleaved(turns, a.seconds)
    faster, of_bare = (1/paired_ratios(t, name).loc['ours'] for name in ('fastai', 'bare'))
    per_s = a.batches*bs/t.median()
    rows.append({'network': arch, 'pixels': size, 'images per batch': bs, 'trained in': str(found),
                 'images/s, fastai': round(per_s.fastai, 1), 'images/s, ours': round(per_s.ours, 1),
                 'times as fast [95%]': f'{faster.ratio:.2f} [{faster.high:.2f}, {faster.low:.2f}]',
                 'of the bare steps [95%]': f'{of_bare.ratio:.0%} [{of_bare.high:.0%}, {of_bare.low:.0%}]'})
    print(setting, rows[-1]['times as fast [95%]'], flush=True)

about = environment()
df = pd.DataFrame(rows)
write_text(a.out/'throughput.csv', df.to_csv(index=False))
write_text(a.out/'report.md', f"""# Training a Hybrid, images a second

{to_markdown(df)}

In fastai's training loop, loaders included, each image once an epoch; the two take turns of {a.batches} batches, the
ratio of each turn, median and 95% interval. fastai: the modules step by step, float32, PyTorch's default layout, images
read and decoded in each epoch. Ours: C++ gates, decoded images, the form that a probe of this network chose. Bare
steps: forward, backward and optimizer, on one batch that is there.

Machine: {provenance(about)}

    {about['command']}
""")
