"""What a trained model answers in other runtimes, and how fast: PyTorch, ONNX, ONNX in eight bits.

    python scripts/measure_runtimes.py RUN… --out results/runtime

Each RUN is a run folder. Everything computes with one thread, in turns; `speedup` is the median of the turns' ratios to
PyTorch. Calibration uses training images; accuracy is of all validation images of the run's data set. Writes
runtimes.csv, report.md and environment.json.
"""
import argparse
import tempfile
from pathlib import Path

import pandas as pd
import torch

from simam_ema_fastai.core.files import read_json, write_json, write_text
from simam_ema_fastai.data.datasets import load_samples
from simam_ema_fastai.deploy.compare import compare_models
from simam_ema_fastai.deploy.load import as_classifier, load_exported
from simam_ema_fastai.deploy.onnx import to_onnx
from simam_ema_fastai.deploy.quantize import to_int8
from simam_ema_fastai.experiments.environment import environment
from simam_ema_fastai.report.formats import to_markdown
from simam_ema_fastai.runtime.classifier import open_model

of_data = 'name', 'path', 'labels', 'valid_pct', 'seed', 'n_classes', 'n_valid'
columns = ['run', 'data', 'side', 'model', 'megabytes', 'n', 'top1', 'same_answer', 'max_delta_p', 'bs', 'ms',
           'speedup', 'low', 'high']


def measure(run:Path, a) -> pd.DataFrame:
    "The rows of one run: a form of its model and a batch size each."
    learn, data = load_exported(run, a.trust), read_json(run/'config.json')['data']
    given = {k: v for k, v in data.items() if k in of_data} | (dict(path=a.path) if a.path else {})
    samples = load_samples(**given)
    valid, train = samples.subset(samples.idxs(True)), [samples.files[i] for i in samples.idxs(False)]
    calibrating = train[::max(1, len(train)//a.n_calibrate)][:a.n_calibrate]
    with tempfile.TemporaryDirectory() as d:
        plain = to_onnx(learn, f'{d}/plain.onnx', images=valid.files[:256])
        int8 = to_int8(learn, f'{d}/int8.onnx', calibrating)
        files = {'ONNX': plain, 'ONNX int8': int8}
        forms = {'PyTorch': as_classifier(learn), **{name: open_model(f, threads=1) for name, f in files.items()}}
        megabytes = [None, *(f.stat().st_size/1e6 for f in files.values())]
        side, tables = forms['PyTorch'].size[0], []
        for bs in a.bs:
            t = compare_models(forms, valid.files, valid.labels, bs, a.seconds)
            tables.append(t.assign(run=run.name, data=data['name'], side=side, bs=bs, megabytes=megabytes))
            print(tables[-1].to_string(index=False), flush=True)
    return pd.concat(tables)


def shown(v) -> str:
    if v is None or pd.isna(v): return ''
    return f'{v:.3g}' if isinstance(v, float) else str(v)


report = """# Trained models in other runtimes

{table}

One thread each, in turns; speedup: median of the turns' ratios to PyTorch, low and high their quartiles. Eight bits
calibrated on {n_calibrate} training images.

Machine: {cpu}, {cores} cores; torch {torch}, commit {commit}

    {command}
"""

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('runs', nargs='+', type=Path)
    p.add_argument('--out', default='results/runtime', type=Path)
    p.add_argument('--path', help='where the data are')
    p.add_argument('--seconds', type=float, default=5., help='per form and batch size')
    p.add_argument('--bs', type=int, nargs='+', default=[1, 32])
    p.add_argument('--n-calibrate', type=int, default=128)
    p.add_argument('--trust', action='store_true', help='open a .pkl where there is no bundle')
    a = p.parse_args()
    torch.set_num_threads(1)
    df = pd.concat([measure(run, a) for run in a.runs])[columns]
    runs = ' '.join(run.name for run in a.runs)
    env = environment() | dict(command=f'python scripts/measure_runtimes.py {runs} --seconds {a.seconds:g}')
    cells = [[shown(v) for v in r] for r in df.values.tolist()]
    write_text(a.out/'runtimes.csv', df.to_csv(index=False))
    write_json(a.out/'environment.json', env)
    machine = {k: env[k] for k in ('cpu', 'cores', 'command')} | dict(commit=(env['commit'] or 'unknown')[:12])
    table = to_markdown(pd.DataFrame(cells, columns=columns))
    write_text(a.out/'report.md', report.format(table=table, n_calibrate=a.n_calibrate, torch=env['packages']['torch'],
                                                **machine))
