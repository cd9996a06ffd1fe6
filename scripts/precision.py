"""Whether training in bf16 costs accuracy: the same runs in fp32 and in bf16, compared image by image, over seeds.

    simam_ema ablate … --seeds 1,2,3,… --layout channels_last --precision fp32 --out runs/fp32
    simam_ema ablate … --seeds 1,2,3,… --layout channels_last --precision bf16 --out runs/bf16
    python scripts/precision.py runs/fp32 runs/bf16 --out results/precision

Writes report.md and differences.csv. The verdict is that of every report: “no worse” by two one-sided tests."""
import argparse
from pathlib import Path

import pandas as pd

from simam_ema_fastai.core.files import write_text
from simam_ema_fastai.experiments.environment import environments, provenance
from simam_ema_fastai.experiments.results import folders_of, load_runs
from simam_ema_fastai.experiments.runs import read_config
from simam_ema_fastai.report.differences import differences, verdict_label
from simam_ema_fastai.report.evidence import Evidence
from simam_ema_fastai.report.formats import to_markdown
from simam_ema_fastai.report.outcomes import load_outcomes
from simam_ema_fastai.training.metrics import metric_label

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('fp32', type=Path, help='the run folder in fp32')
p.add_argument('bf16', type=Path, help='the same in bf16')
p.add_argument('--metrics', nargs='+', default=['top1', 'balanced_accuracy'])
p.add_argument('--margin', type=float, default=1., help='points within which bf16 is no worse')
p.add_argument('--out', type=Path, default=Path('results/precision'))
a = p.parse_args()


def outcomes(folder, precision):
    "What the networks of a folder answered, by name, precision and strategy."
    runs = load_runs(folder)
    found = {read_config(folder/r)['recipe']['precision'] for r in folders_of(runs)}
    if found != {precision}: p.error(f"{folder} holds runs in {', '.join(sorted(found))}, where {precision} is wanted")
    return {(f'{v} {precision}', s): o for (v, s), o in load_outcomes(folder, runs).items()}, runs


(fp32, slow), (bf16, fast) = outcomes(a.fp32, 'fp32'), outcomes(a.bf16, 'bf16')
pairs = {cell: (cell[0].replace('bf16', 'fp32'), cell[1]) for cell in bf16}
tables = {m: differences(fp32 | bf16, m, margin=a.margin, references=pairs) for m in a.metrics}
every = pd.concat(df.assign(metric=m) for m, df in tables.items())
rows = [{'network': r.variant.removesuffix(' bf16'), 'strategy': r.strategy, 'metric': metric_label(r.metric),
         'seeds': min(r.seeds), 'images': r.n, 'verdict': verdict_label(r),
         'bf16 − fp32, points [95%]': f'{r.value:+.2f} [{r.low:+.2f}, {r.high:+.2f}]'} for r in every.itertuples()]
about = Evidence(a.bf16)
noted = [environments(f/folders_of(runs)[-1])[-1] for f, runs in ((a.fp32, slow), (a.bf16, fast))]  # last
ratio = slow.train_seconds.median()/fast.train_seconds.median()
text = f"""# Training in bf16 against fp32

{about.title}

{to_markdown(pd.DataFrame(rows))}

“No worse” is shown by two one-sided tests, each at 5%, over seeds and images; the intervals are of 95%.
Other programs ran beside them, one precision after the other: by the clock fp32 took {ratio:.2f} times as long.

Machine: {provenance(noted[0])}

    {noted[0]['command']}
    {noted[1]['command']}
    python scripts/precision.py {a.fp32.name} {a.bf16.name}
"""
write_text(a.out/'report.md', text)
write_text(a.out/'differences.csv', every.to_csv(index=False))
print(text)
