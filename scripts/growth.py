"""How time and memory grow with images, their side, runs, classes and predictions.

    python scripts/growth.py --out results/growth

Each task is done at two sizes, in processes of their own that take turns. What counts is processor time after the
imports, which other programs disturb less than the clock, the least of the turns; and the peak of the memory.
Writes growth.csv, growth.svg, report.md and environment.json. Interrupted, the same command goes on."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--out', type=Path, default='results/growth')
p.add_argument('--turns', type=int, default=2)
p.add_argument('--task', help='measure this one here, in the folder --out')
p.add_argument('--size', type=int)
rng = np.random.default_rng(0)


def images(folder, n, side=32):
    "`n` JPEG files in ten classes, each of another pattern; made once."
    from PIL import Image
    files = [folder/f'images{side}'/f'{n}'/f'{i % 10}'/f'{i}.jpg' for i in range(n)]
    for d in {f.parent for f in files if not files[-1].exists()}: d.mkdir(parents=True, exist_ok=True)
    for f in files if not files[-1].exists() else []:
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((side, side)).save(f)
    return files


def folder_of_images(folder, n):
    "Checking, decoding, digesting and comparing a folder of 32×32 JPEG files."
    from simam_ema_fastai.data.dls import get_dls
    where = images(folder, n)[0].parents[1]
    return lambda: get_dls('folder', where, size=32, loader='decoded')


def decoded_loader(folder, side):
    "1,280 training images from the decoded loader, cut from 512×512."
    from simam_ema_fastai.data.dls import get_dls
    dls = get_dls('folder', images(folder, 400, 512)[0].parents[1], size=side, bs=32, loader='decoded')
    dls.train.one_batch()
    return lambda: [len(x) for _ in range(4) for x,_ in dls.train]


def grid(folder, seeds, n, classes):
    from simam_ema_fastai.report.fake import fake_run
    for v, accuracy in dict(baseline=.7, simam=.7, ema=.76, hybrid=.78).items():
        for seed in range(seeds): fake_run(folder, v, 'uniform', seed, accuracy, n, classes)
    return folder


def report_of_runs(folder, runs):
    "A report of so many runs with 500 predictions each."
    from simam_ema_fastai.report.page import report
    runs = grid(folder/f'runs{runs}', runs//4, 500, 'abcd')
    return lambda: report(runs)


def report_of_classes(folder, n):
    "A report of eight runs with 5,000 predictions each, of so many classes."
    from simam_ema_fastai.report.page import report
    runs = grid(folder/f'classes{n}', 2, 5000, [f'class {i}' for i in range(n)])
    return lambda: report(runs)


def metrics_of_classes(folder, n):
    "Balanced accuracy, macro-F1, κ, AUROC and average precision of 10,000 predictions, of so many classes."
    import pandas as pd

    from simam_ema_fastai.training.metrics import encode_scores, imbalance_metrics
    logits, true = rng.normal(size=(10_000, n)), np.arange(10_000) % n
    logits[range(len(true)),true] += 2
    df = pd.DataFrame(dict(true=true, pred1=logits.argmax(1), scores=encode_scores(logits - 5)))
    imbalance_metrics(df[:100], 10)  # imports scikit-learn
    return lambda: imbalance_metrics(df, n)


def statistics_of_predictions(folder, n):
    "A difference with its intervals and tests: three seeds on either side, so many images."
    from simam_ema_fastai.report.significance import difference
    a, b = (rng.random((3, n)) < accuracy for accuracy in (.76, .70))
    return lambda: difference(a, b)


def predictions_to_file(folder, n):
    "`simam_ema predict` of so many 32×32 JPEG files to a CSV file, by a network that costs nothing."
    from simam_ema_fastai.runtime.classifier import Classifier
    from simam_ema_fastai.runtime.manifest import bundle_format, manifest_digest
    from simam_ema_fastai.runtime.stream import predict_to_file
    about = dict(format=bundle_format, version=1, classes=['dark', 'bright'],
                 transforms=dict(resize=[32,32], crop=[32,32], mean=[.5]*3, std=[.5]*3))
    about['digest'] = manifest_digest(about)
    model = Classifier(about, lambda x: x.mean((1,2,3))[:,None]*np.array([-1,1], np.float32), 'by hand')
    files, out = images(folder, 40_000)[:n], folder/f'{n}-{os.getpid()}.csv'
    return lambda: predict_to_file(model, files, out)


tasks = {folder_of_images: (7_000, 70_000, 10), decoded_loader: (112, 224, 4), report_of_runs: (40, 400, 10),
         report_of_classes: (10, 1_000, 100), metrics_of_classes: (10, 1_000, 100),
         statistics_of_predictions: (1_000, 100_000, 100), predictions_to_file: (400, 40_000, 100)}


def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])/1024


def measure(task, folder, size):
    "Print seconds of processor time and MiB."
    do = next(t for t in tasks if t.__name__ == task)(folder, size)
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins here
    start = time.process_time()
    do()
    print(f'\n{json.dumps([time.process_time() - start, peak()])}')


def measured(task, folder, size):
    "The same in a process and with a cache of its own."
    with tempfile.TemporaryDirectory(dir=folder) as home:
        env = os.environ | dict(SIMAM_EMA_HOME=home, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
        argv = [sys.executable, __file__, '--task', task.__name__, '--size', str(size), '--out', str(folder)]
        r = subprocess.run(argv, capture_output=True, text=True, env=env)
    if r.returncode: sys.exit(r.stderr)
    return json.loads(r.stdout.splitlines()[-1])


def plot(df):
    from matplotlib.figure import Figure
    fig = Figure(figsize=(7, 3.2), layout='constrained')
    ax = fig.subplots()
    for i, (what, colour) in enumerate((('time', 'C0'), ('memory', 'C1'))):
        ax.barh(np.arange(len(df)) + .4*i, df[what]/df['size'], .38, color=colour, label=what)
    ax.axvline(1, color='gray', ls=':')
    ax.set(xlabel='growth over that of the size; 1: linear, below: slower', yticks=np.arange(len(df)) + .2,
           yticklabels=df.task.str.replace('_', ' '))
    ax.invert_yaxis()
    ax.legend()
    return fig


def main(out, turns):
    import pandas as pd

    from simam_ema_fastai.core.files import write_json, write_text
    from simam_ema_fastai.experiments.environment import environment, provenance
    from simam_ema_fastai.report.formats import to_markdown
    from simam_ema_fastai.report.style import to_svg
    file = out/'growth.csv'
    rows = pd.read_csv(file).to_dict('records') if file.exists() else []
    with tempfile.TemporaryDirectory() as tmp:
        for task, (small, large, size) in tasks.items():
            if task.__name__ in {r['task'] for r in rows}: continue
            found = [[measured(task, Path(tmp), n) for n in (small, large)] for _ in range(turns)]
            (s0, m0), (s1, m1) = np.min(found, 0)  # by size: seconds, MiB
            rows.append(dict(task=task.__name__, small=small, large=large, size=size, turns=turns, seconds_small=s0,
                             seconds_large=s1, time=s1/s0, mib_small=m0, mib_large=m1, memory=m1/m0))
            write_text(file, pd.DataFrame(rows).to_csv(index=False, float_format='%.4g'))
            print('{task}: size ×{size}, time ×{time:.2f}, memory ×{memory:.2f}'.format(**rows[-1]), flush=True)
    df, machine = pd.DataFrame(rows), environment()
    write_text(out/'growth.svg', to_svg(plot(df)))
    write_json(out/'environment.json', machine)
    def times(column): return df[column].map('×{:.3g}'.format)
    shown = pd.DataFrame({'task': [t.__doc__ for t in tasks], 'from': df.small, 'to': df.large, 'size': times('size'),
                          'time': times('time'), 'memory': times('memory'),
                          'seconds': df.seconds_large.map('{:.1f}'.format), 'MiB': df.mib_large.map('{:.0f}'.format)})
    write_text(out/'report.md', '\n'.join([
        '# How cost grows\n', to_markdown(shown), '',
        'Time: of the processor, after the imports. Memory: its peak, imports included. Both over those of the small '
        'size, each the least of its turns (growth.csv); seconds and MiB are those of the large size.\n',
        f'Machine: {provenance(machine)}\n', '    python scripts/growth.py --out results/growth\n',
        '![](growth.svg)']))


if __name__ == '__main__':
    args = p.parse_args()
    if args.task: measure(args.task, args.out, args.size)
    else: main(args.out, args.turns)
