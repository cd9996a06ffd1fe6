"""What looking for a loss that is no number (`StopAtNaN`) costs a training: CPU time of epochs with and without it, in turns.

    python scripts/measure_nan_check.py --pairs 15"""
import argparse
import time

import numpy as np
import torch
from fastai.callback.core import Callback

from simam_ema_fastai.data.dls import get_dls
from simam_ema_fastai.training.checkpoint import StopAtNaN
from simam_ema_fastai.training.learner import variant_learner
from simam_ema_fastai.training.recipe import Recipe

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--pairs', type=int, default=15)
p.add_argument('--arch', default='resnet18')
a = p.parse_args()
torch.set_num_threads(1)

class Seconds(Callback):
    "CPU seconds of the batches of an epoch."
    order = 100
    def before_train(self): self.start = time.process_time()
    def after_train(self): self.of_epoch = time.process_time() - self.start

dls = get_dls('digits', bs=16, n_train=160, n_valid=16)
learn = variant_learner(dls, 'baseline', a.arch, weights=None, recipe=Recipe(epochs=1), cbs=[seconds := Seconds()])
times = {True: [], False: []}
learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, StopAtNaN)])
with learn.no_bar(), learn.no_logging():
    for i in range(a.pairs + 1):
        for checked in (True, False) if i%2 else (False, True):
            learn.fit(1, 1e-4, cbs=[StopAtNaN()] if checked else [])
            if i: times[checked].append(seconds.of_epoch)  # the first pair warms up
ratios = np.array(times[True])/np.array(times[False])
means = np.random.default_rng(0).choice(ratios, (10_000, len(ratios))).mean(1)
check = StopAtNaN()
check.learn = type('Fake', (), dict(training=True, recorder=learn.recorder))
check.before_train()
start = time.process_time()
for _ in range(100_000): check.after_batch()
alone = (time.process_time() - start)/1e5
step = np.median(times[False])/len(dls.train)
print(f'{a.arch}, batches of 16 digits: {1000*step:.1f} ms a step; with the check {100*(ratios.mean() - 1):+.2f}% [{100*(np.quantile(means, .025) - 1):+.2f}, {100*(np.quantile(means, .975) - 1):+.2f}]; '
      f'its call alone {1e6*alone:.2f} µs, {100*alone/step:.4f}% of a step')
