"""How often do the report's intervals contain the truth, and how often does “no worse” err? By simulation.

    python scripts/coverage.py --out results/coverage

Three tables: metrics (every metric, imbalanced classes, three and five seeds), folds (cross-validated classifiers,
their predictions pooled by seed) and margin (networks that are worse by exactly the margin)."""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, stats

from simam_ema_fastai.core.files import write_text
from simam_ema_fastai.report.image_values import image_values
from simam_ema_fastai.report.intervals import contrast
from simam_ema_fastai.report.significance import noninferiority

names = [str(c) for c in range(8)]


def compare(a, b, level=.95): return contrast([a, b], [1, -1], level, n_boot=1)


# -- every metric

def draw(rng, true, seeds, margins, luck, n_classes):
    "Scores `(S, N, C)` of two variants on the same images; `margins` say how much each favors the true class."
    shared = rng.standard_normal((len(true), n_classes))
    def variant(margin):
        own = shared + .7*rng.standard_normal((len(true), n_classes))
        favor = margin + luck*rng.standard_normal((seeds, 1, 1))
        return own + .7*rng.standard_normal((seeds, len(true), n_classes)) + favor*np.eye(n_classes)[true]
    return [variant(m) for m in margins]


def values(metric, true, scores):
    return image_values(metric, true, scores.argmax(2), names[:scores.shape[2]], scores)


def true_difference(metric, shares, margins, luck, n=60_000):
    "In points, from many images; the luck of trainings is integrated by three nodes of Gauss and Hermite."
    rng = np.random.default_rng(7)
    true = rng.choice(len(shares), n, p=shares)
    nodes = zip(np.sqrt(3)*np.array([-1, 0, 1]), (1/6, 2/3, 1/6))
    def mean(margin, node):
        return values(metric, true, draw(rng, true, 1, [margin + luck*node], 0, len(shares))[0]).mean()
    return 100*sum(w*(mean(margins[0], node) - mean(margins[1], node)) for node, w in nodes)


def metric_rows(n_sim):
    settings = [((.8, .15, .05), 400, (2.2, 2.)), ((.9, .1), 300, (2.6, 2.4)), ((.97, .03), 1000, (3., 2.8))]
    for metric in ('balanced_accuracy', 'macro_f1', 'kappa', 'auroc', 'average_precision'):
        for shares, n, margins in settings:
            for luck in (.05, .2):
                truth = true_difference(metric, shares, margins, luck)
                for seeds in (3, 5):
                    rng, hits = np.random.default_rng(1), []
                    for _ in range(n_sim):
                        true = rng.choice(len(shares), n, p=shares)
                        a, b = (values(metric, true, s) for s in draw(rng, true, seeds, margins, luck, len(shares)))
                        e = compare(a, b)
                        hits.append((e.low <= truth <= e.high, e.high - e.low))
                    coverage, width = np.mean(hits, 0)
                    yield dict(metric=metric, classes=' '.join(map(str, shares)), images=n, luck=luck, seeds=seeds,
                               truth=truth, coverage=100*coverage, width=width)


# -- folds

center = np.r_[np.full(5, .45), np.full(15, .05)]  # of one class; the other's is its negative


def sample(rng, n):
    y = rng.choice([-1, 1], n)
    return y[:, None]*center + rng.standard_normal((n, len(center))), y


def ridge(rng, x, y, penalty, features, resample):
    "A linear classifier whose seed decides which features it sees and which images it is trained on."
    columns = rng.permutation(len(center))[:features]
    rows = rng.integers(0, len(x), len(x)) if resample else np.arange(len(x))
    a, t = np.c_[x[rows][:, columns], np.ones(len(x))], y[rows]
    w = np.linalg.solve(a.T@a + penalty*np.eye(a.shape[1]), a.T@t)
    out = np.zeros(len(center))
    out[columns] = w[:-1]
    return out, w[-1]


def true_accuracy(rng, n, kind, n_trainings=4000):
    "In percent, over training sets of `n` images: that of a linear classifier between two Gaussians is known exactly."
    def one():
        w, b = ridge(rng, *sample(rng, n), *kind)
        sides = np.array([w@center + b, w@center - b])/np.linalg.norm(w)
        return stats.norm.cdf(sides).mean()
    return 100*np.mean([one() for _ in range(n_trainings)])


def cross_validate(rng, n, k, seeds, kinds):
    "Which images each kind got right, `(S, N)`: each predicted once per seed, by the training whose fold it is in."
    (x, y), fold = sample(rng, n), rng.permutation(np.arange(n) % k)
    right = [np.zeros((seeds, n), bool) for _ in kinds]
    for s in range(seeds):
        for f in range(k):
            held = fold == f
            for r, kind in zip(right, kinds):
                w, b = ridge(rng, x[~held], y[~held], *kind)
                r[s, held] = np.sign(x[held]@w + b) == y[held]
    return right


pairs = {'all features, 12 of 20': ((1, 20, True), (1, 12, True)), 'equals': ((1, 12, True), (1, 12, True)),
         'penalty 1, 300': ((1, 20, True), (300, 20, True)),
         'seeds change nothing': ((1, 20, False), (1000, 20, False)),
         '6 of 20, all': ((1, 6, True), (1, 20, True))}


def fold_rows(n_sim):
    for name, kinds in pairs.items():
        for n, k in ((100, 5), (300, 5), (300, 10)):
            trained = n*(k - 1)//k
            truth = np.subtract(*(true_accuracy(np.random.default_rng(i), trained, c) for i, c in enumerate(kinds)))
            for seeds in (3, 5):
                rng, hits = np.random.default_rng(2), []
                for _ in range(n_sim):
                    e = compare(*cross_validate(rng, n, k, seeds, kinds))
                    hits.append((e.low <= truth <= e.high, e.high - e.low))
                coverage, width = np.mean(hits, 0)
                yield dict(classifiers=name, images=n, folds=k, seeds=seeds, truth=truth, coverage=100*coverage,
                           width=width)


# -- the margin

def at_the_margin(rng, counts, seeds, luck, level, shift):
    "Values of two variants, the first worse by `shift`, `luck` being that of a training and of each class in it."
    true = np.repeat(range(len(counts)), counts)
    hard = rng.standard_normal(len(true))
    def variant(level):
        own = hard + .5*rng.standard_normal(len(true))
        lucky = luck*(rng.standard_normal((seeds, 1)) + rng.standard_normal((seeds, len(counts))))
        right = (level + lucky)[:, true] + own + rng.standard_normal((seeds, len(true))) > 0
        if len(counts) == 1: return right
        pred = np.where(right, true, (true + 1) % len(counts))
        return image_values('balanced_accuracy', true, pred, names[:len(counts)])
    return variant(np.array(level) + shift), variant(np.array(level))


def margin_rows(n_sim):
    settings = [((1000,), (1.,)), ((3000,), (1.6,)), ((320, 60, 20), (1.2, .3, -.3)), ((1800, 200), (2.2, 1.))]
    for counts, level in settings:
        for luck in (.02, .08):
            sd = (2.25 + 2*luck**2)**.5
            for margin in (1., 3.):
                def loss(shift, level=level, sd=sd, margin=margin):
                    worse, same = (stats.norm.cdf((np.array(level) + s)/sd).mean() for s in (shift, 0))
                    return 100*(worse - same) + margin
                shift = optimize.brentq(loss, -3, 0)
                for seeds in (3, 5):
                    rng, found = np.random.default_rng(3), []
                    for _ in range(n_sim):
                        e = compare(*at_the_margin(rng, counts, seeds, luck, level, shift), level=.9)
                        found.append((noninferiority(e, sum(counts), margin) < .05, e.low <= -margin <= e.high))
                    errors, covered = 100*np.mean(found, 0)
                    yield dict(metric='balanced accuracy' if len(counts) > 1 else 'Top-1',
                               images=' '.join(map(str, counts)), luck=luck, margin=margin, seeds=seeds,
                               errors=errors, coverage_90=covered)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('results/coverage'), help='folder for the tables')
    p.add_argument('--n', type=int, default=1000, help='simulations in each setting (default: 1000)')
    args = p.parse_args()
    if args.n < 1: p.error(f'--n {args.n}: at least 1 is needed')
    for name, rows in dict(metrics=metric_rows, folds=fold_rows, margin=margin_rows).items():
        start, found = time.monotonic(), []
        for row in rows(args.n):
            found.append(row)
            print(f'{name}: {len(found)} settings, {time.monotonic() - start:.0f} s', flush=True)
        write_text(args.out/f'{name}.csv', pd.DataFrame(found).round(2).to_csv(index=False))


if __name__ == '__main__': main()
