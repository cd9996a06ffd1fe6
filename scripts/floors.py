"""What EMA and SimAM take on this CPU, forward and backward, beside what this machine's copy and matrix product allow.

    python scripts/floors.py --out results/floors

In the places and sizes of a ResNet-50. A floor is the time of the copies that any gate makes (x is read, the result
written; x and the gradient are read, the gradient of x written), or of the arithmetic below at the rate of a matrix
product, whichever is longer. In turns, float32, channels last. Writes report.md and floors.csv."""
import argparse
from pathlib import Path

import pandas as pd
import torch

from simam_ema_fastai.attention.cpp_training import build_gates
from simam_ema_fastai.attention.modules import gates
from simam_ema_fastai.core.files import write_text
from simam_ema_fastai.core.memory import keep_freed_memory
from simam_ema_fastai.experiments.candidates import _Copied as Copied
from simam_ema_fastai.experiments.environment import environment, provenance
from simam_ema_fastai.experiments.timing import interleaved, machine_rates
from simam_ema_fastai.report.formats import to_markdown

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--seconds', type=float, default=5., help='of the turns at each place')
p.add_argument('--out', type=Path, default=Path('results/floors'))
a = p.parse_args()

# Floating-point operations per value of the map, as the C++ gates do them, a product and a sum being two; a sigmoid
# counts 20. EMA forward: sums 2, gated mean and variance 7, gate 21, product 1; backward: sums 2, gradient of the gate
# 2, of the softmax 4, of x 56 (18 of them the taps', 18 their gradients), of the means 6. SimAM forward: mean 1,
# variance 3, gate 25; backward: 4 and 39. EMA's matrices are counted by themselves.
per_value = dict(ema=(31, 70), simam=(29, 43))
n_blocks = {256: 3, 512: 4, 1024: 6, 2048: 3}


def operations(gate, n, c_in, side, factor=32):
    "Of forward and backward together, on `n` maps of `c_in` channels."
    values = n*c_in*side**2
    if gate == 'simam': return values*sum(per_value[gate])
    c = c_in//factor
    matrices = 2*n*factor*(2*side + 9)*c*c*3  # the strips and the nine windows; backward for x and for the weights
    return values*sum(per_value[gate]) + matrices + n*factor*2*side*c*20


def step(f, x, g, params):
    def run(): torch.autograd.grad(f(x), [x, *params], g)
    return run


build_gates()
keep_freed_memory()
rates, rows = machine_rates(), []
for size, n in ((64, 32), (224, 4)):
    for gate, width in (('ema', 1), ('simam', 4)):
        for c_out, blocks in n_blocks.items():
            c, side = c_out//width, size//4*256//c_out
            x = torch.randn(n, c, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
            g, m = torch.randn_like(x), gates[gate](c).train()
            t = 1e3*interleaved({'gate': step(m, x, g, [*m.parameters()]), 'copy': step(Copied.apply, x, g, [])},
                                a.seconds).median()
            arithmetic = 1e3*operations(gate, n, c, side)/rates['flops_per_s']
            rows.append(dict(gate=gate, pixels=size, images=n, channels=c, side=side, blocks=blocks,
                             ms=t['gate']*blocks, copy_ms=t['copy']*blocks, arithmetic_ms=arithmetic*blocks))
            print(rows[-1], flush=True)

df = pd.DataFrame(rows)
whole = df.assign(floor=df[['copy_ms', 'arithmetic_ms']].max(axis=1)).groupby(['gate', 'pixels', 'images'], sort=False)
table = whole[['ms', 'copy_ms', 'arithmetic_ms', 'floor']].sum().reset_index()
table['floor/gates'] = [f'{100*s:.0f}%' for s in table.floor/table.ms]
names = {'ms': 'gates, ms', 'copy_ms': 'copies, ms', 'arithmetic_ms': 'arithmetic, ms', 'floor': 'floor, ms'}
about = environment()
text = f"""# What the gates take, and what they have to

EMA and SimAM in all 16 blocks of a ResNet-50, forward and backward, float32, channels last:

{to_markdown(table.rename(columns=names).round(1).astype(str))}

Copies: x is read and the result written, x and the gradient are read and the gradient of x written, by PyTorch, in
turns with the gates. Arithmetic: the operations that `scripts/floors.py` counts, at {rates['flops_per_s']/1e9:.0f}
GFLOP/s, this machine's matrix product. That uses a value it has loaded many times; a gate uses it once or twice.

Machine: {provenance(about)}

    {about['command']}
"""
write_text(a.out/'floors.csv', df.to_csv(index=False, float_format='%.4g'))
write_text(a.out/'report.md', text)
print(text)
