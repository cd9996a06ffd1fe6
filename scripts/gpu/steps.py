"""The queue: what the study runs, in order, as command lines, with the minutes each is thought to take.

    python scripts/gpu/steps.py RUNS [--tiny]      what is done, what comes next, what it will take

First the recipe is searched, on training images alone and for the baseline alone; then it is frozen for every variant."""
import argparse
import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    setting:str # Folder of its runs: '128', 'search/64-…', …
    name:str # Folder of this run below it
    argv:tuple # A program and its arguments; {data}, {out} are filled in where it runs
    minutes:float # On one H200, with as many beside it as may be
    beside:int = 1 # How many may run at a time
    @property
    def key(self) -> str: return f'{self.setting}/{self.name}'
    @property
    def gated(self) -> bool: return self.setting != 'check' and not self.name.startswith('baseline') # Waits for what `check` says of the gates' kernels

@dataclass(frozen=True)
class Scale:
    "The study's size, or a rehearsal's."
    sizes:tuple = (64, 128, 224) # Native, middle, and the one of the published counts
    rates:tuple = (20_000, 10_500, 3_500) # Images per second in training ResNet-50 on one H200, by size: README.md says where these come from
    beside:tuple = (4, 2, 1) # Trainings at a time, by size; at the largest their times are results
    search_beside:tuple = (9, 6, 1) # The same for those of a search, which mostly start and stop
    epochs:int = 20
    n_train:int = 100_000
    model:tuple = ('--arch', 'resnet50', '--weights', 'npm')
    variants:tuple = ('baseline', 'simam', 'ema', 'hybrid', 'hybrid_all')
    seeds:tuple = (1, 2, 3)
    search:tuple = (20_000, 10_000, 6) # Training images, held-out training images, epochs
    extra:tuple = () # For every training
    checked:tuple = (64, 128, 224) # Sizes whose kernels are checked
    check:tuple = ('gpu_check.py', '--training', '--out', '{out}')
    efficiency:tuple = ('--variants', 'simam,ema,hybrid', '--seconds', '15')

full = Scale()
tiny = Scale(sizes=(32, 48, 64), epochs=2, n_train=64, model=('--arch', 'resnet18', '--weights', 'none'), variants=('baseline', 'hybrid'), seeds=(1,), search=(48, 24, 2),
             extra=('--n-train', '64', '--n-valid', '32', '--freeze-epochs', '1'), checked=(64,), check=('gpu_check.py', '--rehearse', '--out', '{out}'), efficiency=('--variants', 'hybrid', '--seconds', '1', '--arch', 'resnet18', '--eager'))
startup, compiling = .5, 1. # Minutes: to begin and to finish a run, to compile it
costs = {'baseline': 1., 'simam': 1.05, 'ema': 1.15} # Training time over the baseline's; other variants 1.1

def found(runs:Path) -> dict[str,dict]: # Key to {} or to Top-1, the seconds that the last epoch trained, and by how many the epochs before were slower
    "The steps that are done below `runs`."
    out = {}
    for f in sorted(runs.rglob('step.json')):
        out[str(f.parent.relative_to(runs))] = made = {}
        if (metrics := f.with_name('metrics.json')).exists():
            with open(f.with_name('history.csv')) as h: seconds = [float(r['train_seconds']) for r in csv.DictReader(h)]
            made.update(top1=json.loads(metrics.read_text())['top1'], last=seconds[-1], slower=sum(seconds) - len(seconds)*seconds[-1])
    return out

def _text(v) -> str: return f'{v:g}' if isinstance(v, float) else str(v)

def _flags(options:dict) -> tuple: return tuple(o for k,v in options.items() for o in ((f'--{k}',) if v is True else (f'--{k}', _text(v))))

def _train(scale:Scale, setting:str, size:int, variant:str, options:dict, seed:int=1, strategy:str=None, subset:bool=False, epochs:int=None, beside:int=None) -> Step:
    variant = options.get('variant', variant)
    strategy = strategy or ('discriminative+freeze' if variant.startswith('hybrid') or '@' in variant else 'uniform')
    at, (n_train, n_valid, few) = scale.sizes.index(size), scale.search
    epochs, beside = epochs or (few if subset else scale.epochs), beside or (scale.search_beside if subset else scale.beside)[at]
    data = ('--data', 'folder', '--path', '{data}/train', '--n-train', str(n_train), '--n-valid', str(n_valid)) if subset else ('--data', 'tiny_imagenet', '--path', '{data}', *scale.extra)
    measured = () if beside == 1 and not subset else ('--no-report',)  # timings taken beside other trainings say nothing
    argv = ('simam_ema', 'train', '--variant', variant, '--strategy', strategy, '--seed', str(seed), *data, '--size', str(size), *scale.model, '--epochs', str(epochs), *_flags({k: v for k,v in options.items() if k != 'variant'}), *measured, '--out', '{out}')
    seconds = epochs*(n_train if subset else scale.n_train)/scale.rates[at]*costs.get(variant, 1.1)
    graphs = ('compile' in options)*(1 - (options.get('start-size', size) - size)//32)  # pictures that grow are compiled at every size
    return Step(setting, f'{variant}-{strategy}-s{seed}', argv, startup + compiling*graphs + seconds*beside/60, beside)

@dataclass(frozen=True)
class Stage:
    "From the best options so far, those to try next."
    size:int
    candidates:Callable[[dict],list[dict]]

def recipe_stages(scale:Scale) -> list[Stage]:
    small, middle, _ = scale.sizes
    if scale is tiny: return [Stage(small, lambda b: [dict(opt='adamw', lr=lr, bs=16) for lr in (3e-4, 1e-3)]), Stage(middle, lambda b: [b, {**b, 'label-smoothing': .1}])]
    lrs = dict(adamw=(3e-4, 1e-3, 3e-3), sgd=(.01, .03, .1))
    return [Stage(small, lambda b: [dict(opt=o, lr=lr, bs=256) for o in lrs for lr in lrs[o]]),
            Stage(small, lambda b: [b, {**b, 'wd': 1e-3}, {**b, 'wd': 5e-2}, {**b, 'bs': 128}]),
            Stage(middle, lambda b: [{**b, 'lr': b['lr']*f} for f in (.5, 1., 2.)]),
            Stage(middle, lambda b: [b, {**b, 'label-smoothing': .1}, {**b, 'min-scale': .2}, {**b, 'min-scale': .5}])]

def _simam_places(b:dict) -> list[dict]:
    "The Hybrid with its SimAM elsewhere, or without it."
    return [{**b, 'variant': '+'.join([*simam, 'ema@residual34'])} for simam in (['simam@spatial34'], ['simam@spatial4'], ['simam@spatial234'], ['simam@spatial'], ['simam@stage34'], [])]

def _ema_places(b:dict) -> list[dict]:
    "The best of those with its EMA elsewhere."
    simam = b['variant'].split('+')[:-1]
    places = ['ema@residual34', 'ema@residual4', 'ema@residual234', 'ema@residual', *(['ema@stage34'] if simam != ['simam@stage34'] else [])]  # a site holds one gate
    return [{**b, 'variant': '+'.join([*simam, ema])} for ema in places]

def beyond_stages(scale:Scale) -> list[Stage]:
    "What the study's Hybrid may not have, positions first: judged on held-out training images too."
    small, middle, _ = scale.sizes
    few = scale.search[2]
    grow = {'start-size': small, 'resize-epochs': max(1, few//2)} if scale is full else {'start-size': 32, 'resize-epochs': 1}
    if scale is tiny: return [Stage(middle, lambda b: _simam_places(b)[:2]), Stage(middle, lambda b: [b, {**b, 'average': .9, **grow}])]
    return [Stage(middle, _simam_places), Stage(middle, _ema_places),
            Stage(middle, lambda b: [b, {**b, 'average': .998}, {**b, 'average': .998, 'mixup': .2}, {**b, 'average': .998, 'cutmix': 1.}]),
            Stage(middle, lambda b: [b, {**b, 'label-smoothing': .1}, {**b, **grow}])]

def searched(done:dict, stages:list[Stage], name:str, variant:str, start:dict, scale:Scale=full, given_up:frozenset=frozenset()) -> tuple[list,dict|None]: # What was and is to be tried: (stage, options, step); the best options, None while a stage is undone
    "A search as far as it has come."
    tried, best = [], start
    for number, stage in enumerate(stages):
        here = []
        for options in stage.candidates(best):
            slug = '-'.join([str(stage.size), *(k + _text(v) for k,v in options.items() if k != 'variant')])
            here.append((number, options, _train(scale, f'{name}/{slug}', stage.size, variant, options, subset=True)))
        tried += here
        top1 = {i: done[s.key]['top1'] for i,(*_,s) in enumerate(here) if s.key in done}
        if not top1 or any(s.key not in done and s.key not in given_up for *_,s in here): return tried, None
        best = here[max(top1, key=top1.get)][1]
    return tried, best

def speed(options:dict, scale:Scale) -> list[Step]:
    "The Hybrid under the searched options, plain and compiled (once with its gates frozen and once with them released), by itself."
    return [_train(scale, f'speed/{name}', scale.sizes[1], 'hybrid', {**options, **more, 'freeze-epochs': 1}, subset=True, epochs=3, beside=1) for name,more in (('eager', {}), ('compiled', {'compile': True}))]

def compiling_pays(done:dict, eager:Step, compiled:Step, scale:Scale) -> bool:
    "Whether a whole training would be over sooner."
    if eager.key not in done or compiled.key not in done: return False
    seconds = lambda m: m['slower'] + m['last']*scale.epochs*scale.n_train/scale.search[0]
    return seconds(done[compiled.key]) < seconds(done[eager.key])

def recipe_of(done:dict, scale:Scale=full, given_up:frozenset=frozenset()) -> dict|None:
    "The options that the search ended with, compiled if that pays; None before."
    best = searched(done, recipe_stages(scale), 'search', 'baseline', {}, scale, given_up)[1]
    if best is None or any(s.key not in done and s.key not in given_up for s in speed(best, scale)): return None
    return best | ({'compile': True} if compiling_pays(done, *speed(best, scale), scale) else {})

def study(options:dict, scale:Scale=full) -> list[Step]:
    "The reproduction under frozen options, in order; what two parts share stands where it is needed first."
    native, middle, large = scale.sizes
    train = lambda size, variant, *seed_and_strategy: _train(scale, str(size), size, variant, options, *seed_and_strategy)
    first = lambda v: v not in ('baseline', 'hybrid')
    plain, crossed = [(v, None) for v in sorted(scale.variants, key=first)], [(v, s) for v in scale.variants if v != 'hybrid_all' for s in ('uniform', 'discriminative+freeze')]
    steps = [train(middle, v, seed, s) for seed in scale.seeds for v,s in plain + crossed] # (a) variants, (b) architectures × strategies, (c) more seeds
    steps += [train(large, v) for v in sorted(scale.variants, key=first)] # (d) 224 pixels
    steps += [train(native, v) for v in scale.variants] # (e) 64 pixels
    benchmark = ('simam_ema', 'benchmark', '--sizes', str(large), *scale.efficiency, '--out', '{out}') # (f)
    steps += [Step('efficiency', 'latency', (*benchmark, '--tasks', 'forward', '--bs', '1,64'), 8.), Step('efficiency', 'training', (*benchmark, '--tasks', 'training,memory', '--bs', '64', *(('--eager',) if scale is full else ())), 2.)]
    steps += [train(large, v, seed) for seed in scale.seeds for v in ('baseline', 'hybrid')] # more seeds at 224 pixels
    return list({s.key: s for s in steps}.values())

def queue(done:dict, scale:Scale=full, frozen:dict|None=None, given_up:frozenset=frozenset()) -> list[Step]:
    "Every step that can be named now, in order: while a search goes on its stages so far, afterwards what it is for. `frozen` options take the place of the search."
    steps = [Step('check', str(size), (*scale.check, '--sizes', str(size)), 2., 16) for size in scale.checked]
    if frozen is None:
        tried, best = searched(done, recipe_stages(scale), 'search', 'baseline', {}, scale, given_up)
        steps += [*(s for *_,s in tried), *(speed(best, scale) if best is not None else ())]
    options = frozen if frozen is not None else recipe_of(done, scale, given_up)
    if options is None: return list({s.key: s for s in steps}.values())
    steps += study(options, scale)
    tried, best = searched(done, beyond_stages(scale), 'beyond/search', 'hybrid', {k: v for k,v in options.items() if k != 'compile'}, scale, given_up)
    steps += [s for *_,s in tried]
    if best is not None:  # a search's epochs are fewer: what counts in epochs grows with them
        if 'start-size' in best: best = {**best, 'start-size': scale.sizes[1] if scale is full else 32, 'resize-epochs': scale.epochs//2}
        steps.append(_train(scale, 'beyond', scale.sizes[2], 'hybrid', best | {k: v for k,v in options.items() if k == 'compile'}))
    return list({s.key: s for s in steps}.values())

def state_of(runs:Path) -> tuple[dict,dict|None,dict]: # What is done, what is frozen, what failed and its last words
    "What `runs` says of the queue."
    read = lambda name, default: json.loads((runs/name).read_text()) if (runs/name).exists() else default
    done = found(runs)
    return done, read('recipe.json', None), {k: why for k,why in read('failed.json', {}).items() if k not in done}

def hopeless(failed:dict) -> frozenset:
    "Of what failed, what is not tried again in the next sitting: a candidate that cannot be trained is a finding."
    return frozenset(k for k in failed if 'search/' in k)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('runs', type=Path); p.add_argument('--tiny', action='store_true')
    a = p.parse_args()
    done, frozen, failed = state_of(a.runs)
    steps = queue(done, tiny if a.tiny else full, frozen, hopeless(failed))
    for s in steps: print(f"{'done' if s.key in done else 'fail' if s.key in failed else f'{s.minutes:4.1f}'}  {s.key}: {' '.join(s.argv)}")
    left = [s for s in steps if s.key not in done and s.key not in hopeless(failed)]
    print(f'{len(steps) - len(left)} of {len(steps)} done, {sum(s.minutes/s.beside for s in left):.0f} minutes left by estimate; what follows a search is named when it is over')
