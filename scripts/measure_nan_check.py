"""What the check for a NaN loss (`StopAtNaN`) costs a training: CPU time of epochs with and without it, in turns.

    python scripts/measure_nan_check.py --pairs 15"""
import argparse
import time

import numpy as np
import torch
from fastai.callback.core import Callback

from simam_ema_fastai.data.dls import get_dls
from simam_ema_fastai.training.learner import variant_learner
from simam_ema_fastai.training.recipe import Recipe
from simam_ema_fastai.training.recorder import StopAtNaN


class Seconds(Callback):
    "CPU seconds of the batches of an epoch."
    order = 100
    def before_train(self): self.start = time.process_time()
    def after_train(self): self.of_epoch = time.process_time() - self.start


def epochs(learn, pairs):
    "CPU seconds of `pairs` epochs with the check and as many without it, in turns; the first pair warms up."
    times = {True: [], False: []}
    with learn.no_bar(), learn.no_logging():
        for i in range(pairs + 1):
            for checked in (True, False) if i%2 else (False, True):
                learn.fit(1, 1e-4, cbs=[StopAtNaN()] if checked else [])
                if i: times[checked].append(learn.seconds.of_epoch)
    return np.array(times[True]), np.array(times[False])


def one_call(learn, n=100_000):
    "CPU seconds of the check's call after a batch."
    check = StopAtNaN()
    check.learn = type('Fake', (), dict(training=True, recorder=learn.recorder))
    check.before_train()
    start = time.process_time()
    for _ in range(n): check.after_batch()
    return (time.process_time() - start)/n


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--pairs', type=int, default=15)
p.add_argument('--arch', default='resnet18')
a = p.parse_args()
torch.set_num_threads(1)
dls = get_dls('digits', bs=16, n_train=160, n_valid=16)
learn = variant_learner(dls, 'baseline', a.arch, weights=None, recipe=Recipe(epochs=1), cbs=Seconds())
checked, unchecked = epochs(learn, a.pairs)
ratios = checked/unchecked
means = np.random.default_rng(0).choice(ratios, (10_000, len(ratios))).mean(1)
mean, low, high = (100*(r - 1) for r in (ratios.mean(), *np.quantile(means, [.025, .975])))
call, step = one_call(learn), np.median(unchecked)/len(dls.train)
print(f'{a.arch}, batches of 16 digits: {1000*step:.1f} ms a step; '
      f'with the check {mean:+.2f}% [{low:+.2f}, {high:+.2f}]; '
      f'its call alone {1e6*call:.2f} µs, {100*call/step:.4f}% of a step')
