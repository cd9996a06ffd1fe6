"""What a trained model answers in other runtimes, and how fast: PyTorch, ONNX, ONNX in eight bits, on all validation pictures of its data set.

    python scripts/measure_runtimes.py RUN… --out results/runtime

Each RUN is a run folder. Everything computes with one thread, in turns; `speedup` is the median of the turns' ratios to PyTorch. Calibration uses
training pictures, accuracy is of validation pictures. Writes runtimes.csv, report.md and environment.json."""
import argparse
import tempfile
from pathlib import Path

import pandas as pd
import torch

from simam_ema_fastai.core import read_json, write_json, write_text
from simam_ema_fastai.data.dls import load_samples
from simam_ema_fastai.deploy.load import classifier, load
from simam_ema_fastai.deploy.onnx import compare, to_int8, to_onnx
from simam_ema_fastai.experiments.ablation import environment
from simam_ema_fastai.report.formats import to_markdown
from simam_ema_fastai.runtime.classifier import open_model

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('runs', nargs='+')
p.add_argument('--out', default='results/runtime')
p.add_argument('--path', help='where the data are')
p.add_argument('--seconds', type=float, default=5., help='per form and batch size')
p.add_argument('--bs', type=int, nargs='+', default=[1, 32])
p.add_argument('--n-calibrate', type=int, default=128)
p.add_argument('--trust', action='store_true', help='open a .pkl where there is no bundle')
a = p.parse_args()

torch.set_num_threads(1)
tables = []
for run in map(Path, a.runs):
    learn = load(run, a.trust)
    data = {k: v for k,v in read_json(run/'config.json')['data'].items() if k in ('name','path','labels','valid_pct','seed','n_classes','n_valid')}
    s = load_samples(**data | (dict(path=a.path) if a.path else {}))
    valid = s.keep(s.idxs(True))
    train = [s.files[i] for i in s.idxs(False)]
    with tempfile.TemporaryDirectory() as d:
        to_onnx(learn, f'{d}/plain.onnx', pictures=valid.files[:256])
        to_int8(learn, f'{d}/int8.onnx', train[::max(1, len(train)//a.n_calibrate)][:a.n_calibrate])
        sizes = {'PyTorch': None, 'ONNX': Path(f'{d}/plain.onnx').stat().st_size, 'ONNX int8': Path(f'{d}/int8.onnx').stat().st_size}
        forms = {'PyTorch': classifier(learn), 'ONNX': open_model(f'{d}/plain.onnx', threads=1), 'ONNX int8': open_model(f'{d}/int8.onnx', threads=1)}
        for bs in a.bs:
            t = compare(forms, valid.files, valid.labels, bs, a.seconds)
            tables.append(t.assign(run=run.name, data=s and data['name'], side=forms['PyTorch'].size[0], bs=bs, megabytes=[sizes[m] and sizes[m]/1e6 for m in t.model]))
            print(tables[-1].to_string(index=False), flush=True)
df = pd.concat(tables)
df = df[['run','data','side','model','megabytes','n','top1','same_answer','max_delta_p','bs','ms','speedup','low','high']]
out = Path(a.out)
write_text(out/'runtimes.csv', df.to_csv(index=False))
env = environment() | dict(command=' '.join(['python scripts/measure_runtimes.py', *(Path(r).name for r in a.runs), f'--seconds {a.seconds:g}']))
write_json(out/'environment.json', env)
cells = [[f'{v:.3g}' if isinstance(v, float) and pd.notna(v) else '' if v is None or v != v else str(v) for v in r] for r in df.values.tolist()]
table = to_markdown(pd.DataFrame(cells, columns=df.columns))
write_text(out/'report.md', f"""# Trained models in other runtimes

{table}

One thread each, in turns; speedup: median of the turns' ratios to PyTorch, low and high their quartiles. Eight bits calibrated on {a.n_calibrate} training pictures.

Machine: {env['cpu']}, {env['cores']} cores; torch {env['packages']['torch']}, commit {(env['commit'] or 'unknown')[:12]}

    {env['command']}
""")
