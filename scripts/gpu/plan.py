"The commands of a sitting, in order. sitting.py fills in {data}, {weights} and {out}, and skips what is done already."
from collections import namedtuple

# commands by name, stopped after so many seconds, so many jobs at a time, begun with at least so many seconds left
Stage = namedtuple('Stage', 'name commands seconds jobs least needs_data', defaults=(1, 20, False))

def check(options): return f'gpu_check --out {{out}} {options}'
def cost(options): return f'benchmark --out {{out}} --variants simam,ema,hybrid --sizes 224 --seconds 4 {options}'

def train(variant, seed=1, size=64, strategy=None):
    "A training of the study: ResNet-50 (the default), 20 epochs, AdamW, batches of 256, bfloat16."
    strategy = strategy or ('discriminative+freeze' if variant.startswith('hybrid') else 'uniform')
    same = '--epochs 20 --bs 256 --precision bf16 --weights {weights} --data tiny_imagenet --path {data} --no-report'
    return f'train --out {{out}} --variant {variant} --strategy {strategy} --seed {seed} --size {size} {same}'

def seeds(variants, *numbers, size=64): return {f'{v}-s{n}': train(v, n, size) for n in numbers for v in variants}

four = ('baseline', 'simam', 'ema', 'hybrid')
kernels = [f'{k}-{size}' for k in ('simam', 'simam_bn_relu', 'ema', 'ema_add_relu') for size in (64, 224)]
stages = [
    Stage('kernels', {k: check(f'--parts parity --kernels {k.replace("-", " --sizes ")}') for k in kernels}, 60, 8),
    Stage('bandwidth', {'timing': check('--parts timing')}, 40),
    Stage('cost', {'latency-1': cost('--tasks forward --bs 1'), 'latency-64': cost('--tasks forward --bs 64'),
                   'training-64': cost('--tasks training,memory --bs 64 --eager')}, 110),
    Stage('study', seeds(four, 1), 400, 4, 60, True),
    Stage('further', {'all-s1': train('hybrid_all'), 'identity-s1': train('hybrid_identity'),
                      'uniform-s1': train('hybrid', strategy='uniform'),
                      'discriminative-s1': train('baseline', strategy='discriminative+freeze')}, 400, 4, 60, True),
    Stage('seeds', seeds(four, 2, 3), 600, 4, 60, True),
    Stage('128', seeds(('baseline', 'hybrid'), 1, size=128), 600, 2, 120, True),
    Stage('224', seeds(('baseline', 'hybrid'), 1, size=224), 600, 1, 120, True)]
