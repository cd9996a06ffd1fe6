"""What came back from the machine becomes ordinary run folders and tables here, checked:

    python scripts/gpu/merge.py RESULTS RUNS TABLES

RESULTS holds a folder with a results.tar.gz per sitting. RUNS gets a folder per image size, for `simam_ema report`."""
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pandas as pd

from simam_ema_fastai.core.downloads import unpack_tar
from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.core.files import atomic_path, read_json, write_json, write_text

beside = 'Trained several at a time on one GPU: training times are not comparable with those of single trainings.\n'

def check(run):
    "Raise `UserError` unless a run is whole: every epoch trained, and the accuracies those of the predictions."
    epochs, wanted = pd.read_csv(run/'history.csv').epoch.tolist(), read_json(run/'config.json')['recipe']['epochs']
    if epochs != list(range(wanted)): raise UserError(f"{run}: epochs {epochs} of {wanted} are trained.")
    answers, metrics = pd.read_csv(run/'predictions.csv'), read_json(run/'metrics.json')
    right = answers.filter(regex=r'^pred\d$').eq(answers.true, axis=0)
    for k, v in dict(n=len(answers), top1=100*right.pred1.mean(), top5=100*right.any(axis=1).mean()).items():
        if abs(v - metrics[k]) > 1e-6: raise UserError(f'{run}: {k} by predictions is {v:.3f}, not {metrics[k]:.3f}.')

def take(run, runs, commit, jobs):
    "Bring a checked run to its place, with the commit it was packed from; another result there is refused."
    check(run)
    to = runs/str(read_json(run/'config.json')['data']['size'])/run.name
    if to.exists():
        if (to/'predictions.csv').read_bytes() == (run/'predictions.csv').read_bytes(): return
        raise UserError(f'{to} holds another result of the same run: move it away, or leave its archive out.')
    write_json(run/'environment.json', [e | dict(commit=commit) for e in read_json(run/'environment.json')])
    with atomic_path(to) as tmp: shutil.copytree(run, tmp)
    if jobs > 1: write_text(to.parent/'notes.txt', beside)

def merge(results, runs, tables):
    "File all runs, and put the tables of all steps together, each row with its sitting, step and commit."
    rows = defaultdict(list)
    for archive in sorted(results.glob('*/results.tar.gz')):
        with tempfile.TemporaryDirectory() as d:
            unpack_tar(archive, d)
            commit = (Path(d)/'commit.txt').read_text()
            for file in sorted(Path(d).glob('*/*/step.json')):
                of = dict(sitting=archive.parent.name, step='/'.join(file.parts[-3:-1]), commit=commit)
                step = read_json(file)
                rows['steps.csv'].append(pd.DataFrame([of | step | dict(argv=' '.join(step['argv']))]))
                for f in file.parent.glob('*.csv'): rows[f.name].append(pd.read_csv(f).assign(**of))
                for f in file.parent.glob('*/config.json'): take(f.parent, runs, commit, step['jobs'])
    for name, frames in rows.items(): write_text(tables/name, pd.concat(frames).to_csv(index=False))

if __name__ == '__main__': merge(*map(Path, sys.argv[1:4])) if len(sys.argv) == 4 else sys.exit(__doc__)
