"""What came back from the machine becomes run folders here, checked:

    python scripts/gpu/merge.py RESULTS RUNS [--tables results/tiny_imagenet]

RESULTS holds results-*.tar.gz of any number of sittings. RUNS gets a run folder per setting: `simam_ema report RUNS/128` works on it."""
import argparse
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import pandas as pd
import steps

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.core.files import atomic_path, read_json, write_json, write_text
from simam_ema_fastai.models.cost import count_flops, flops_convention
from simam_ema_fastai.models.cost import count_params
from simam_ema_fastai.models.create import create_model

beside_note = 'Trained several at a time on one GPU: training times are not comparable with those of trainings by themselves.'

def unpack(archive:Path, to:Path):
    "The archive's files in `to`; raises `UserError` if it is damaged."
    try:
        with tarfile.open(archive) as tar: tar.extractall(to, filter='data')
    except (tarfile.TarError, EOFError, OSError) as e: raise UserError(f'{archive} is damaged ({e}): copy it again.') from e

def check(run:Path):
    "Raise `UserError` unless a run is whole: every file there, every epoch trained, every picture answered, and the accuracies those of the answers."
    missing = [f for f in ('config.json','environment.json','history.csv','metrics.json','per_class.csv','predictions.csv') if not (run/f).exists()]
    if missing: raise UserError(f"{run} is incomplete: {', '.join(missing)} is missing.")
    config, metrics, answers = read_json(run/'config.json'), read_json(run/'metrics.json'), pd.read_csv(run/'predictions.csv')
    epochs = pd.read_csv(run/'history.csv').epoch.tolist()
    if epochs != list(range(config['recipe']['epochs'])): raise UserError(f"{run}: epochs {epochs} of {config['recipe']['epochs']} are trained.")
    best = answers.filter(regex=r'^pred\d$')
    counted = dict(n=len(answers), top1=100*(answers.true == answers.pred1).mean(), top5=100*best.eq(answers.true, axis=0).any(axis=1).mean())
    for k,v in counted.items():
        if abs(v - metrics[k]) > 1e-6: raise UserError(f'{run}: {k} of the predictions is {v:.3f}, its metrics say {metrics[k]:.3f}.')

def count(run:Path, known:dict={}):
    "Add parameters and FLOPs, which no machine changes, to a run that was not measured."
    if (run/'efficiency.json').exists(): return
    c = read_json(run/'config.json')
    n_classes = len(pd.read_csv(run/'per_class.csv'))
    key = c['variant'], c['arch'], c['data']['size'], n_classes
    if key not in known:
        model = create_model(c['variant'], n_classes, c['arch'])
        known[key] = dict(parameters=count_params(model), gflops=count_flops(model, c["data"]["size"])/1e9, flops_convention=flops_convention, size=c['data']['size'])
    write_json(run/'efficiency.json', known[key])

def take(found:Path, to:Path) -> bool: # Whether it was new
    "Bring a checked step to its place. Raises `UserError` if another result is there."
    is_run = (found/'metrics.json').exists()
    if is_run: check(found)
    if to.exists():
        if is_run and (to/'predictions.csv').read_bytes() != (found/'predictions.csv').read_bytes(): raise UserError(f'{to} holds another result of the same step: move it away, or leave its archive out.')
        return False
    with atomic_path(to) as tmp:
        shutil.copytree(found, tmp)
        if is_run: count(tmp)
    if read_json(to/'step.json')['beside'] > 1: write_text(to.parent/'notes.txt', beside_note + '\n')
    return True

def search_table(runs:Path, done:dict) -> pd.DataFrame:
    "A row per candidate that was tried: for which search, with which options, and what came of it."
    rows = []
    for key in (k for k in done if 'search/' in k):
        argv = read_json(runs/key/'step.json')['argv']
        rows.append(dict(search='beyond' if key.startswith('beyond') else 'recipe', variant=argv[argv.index('--variant') + 1], candidate=key.split('/')[-2], **{k: v for k,v in read_json(runs/key/'metrics.json').items() if k in ('top1','top5','loss','n')}, command=' '.join(argv)))
    return pd.DataFrame(rows)

def freeze(recipe:dict, runs:Path):
    "Settle the recipe that a search ended with; raises `UserError` if another one is settled."
    file = runs/'recipe.json'
    if not file.exists(): write_json(file, recipe)
    elif read_json(file) != recipe: raise UserError(f'{file} says {read_json(file)}, the results were made with {recipe}: keep them apart.')

def merge(results:Path, runs:Path, tables:Path|None):
    archives, new, scale = sorted(results.rglob('results-*.tar.gz')), 0, steps.full
    if not archives: raise UserError(f"no results-*.tar.gz in '{results}'.")
    for archive in archives:
        with tempfile.TemporaryDirectory() as d:
            unpack(archive, Path(d))
            if (pack := Path(d)/'pack.json').exists() and read_json(pack)['tiny']: scale = steps.tiny
            if (recipe := Path(d)/'runs'/'recipe.json').exists(): freeze(read_json(recipe), runs)
            if (failed := Path(d)/'runs'/'failed.json').exists(): write_json(runs/'failed.json', (read_json(runs/'failed.json') if (runs/'failed.json').exists() else {}) | read_json(failed))
            for key in steps.found(Path(d)/'runs'): new += take(Path(d)/'runs'/key, runs/key)
    done, frozen, failed = steps.state_of(runs)
    if tables:
        search = search_table(runs, done)
        if len(search): write_text(tables/'search.csv', search.to_csv(index=False))
        if frozen: write_json(tables/'recipe.json', frozen)
        timed = [dict(step=k, **{n: round(v, 2) if isinstance(v, float) else v for n,v in read_json(runs/k/'step.json').items() if n != 'argv'}, command=' '.join(read_json(runs/k/'step.json')['argv'])) for k in done]
        write_text(tables/'steps.csv', pd.DataFrame(timed).to_csv(index=False))
        if failed: write_text(tables/'failed.csv', pd.DataFrame(failed.items(), columns=['step', 'said']).to_csv(index=False))
        for f in [f for name in ('check', 'efficiency') for f in (runs/name).glob('*/*') if f.suffix in ('.csv', '.png', '.md') or f.name == 'machine.json']:
            with atomic_path(tables/f.relative_to(runs)) as tmp: shutil.copy(f, tmp)
    todo = [s for s in steps.queue(done, scale, frozen, steps.hopeless(failed)) if s.key not in done and s.key not in steps.hopeless(failed)]
    print(f"{new} new steps in {runs}; {len(todo)} left" + (f', next: {todo[0].key}' if todo else '') + (f'; {len(failed)} failed: {", ".join(failed)}' if failed else ''))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('results', type=Path); p.add_argument('runs', type=Path)
    p.add_argument('--tables', type=Path, help='also write search.csv, recipe.json, steps.csv and what was measured here')
    a = p.parse_args()
    try: merge(a.results, a.runs, a.tables)
    except UserError as e: print(f'merge: {e}', file=sys.stderr); sys.exit(2)

if __name__ == '__main__': main()
