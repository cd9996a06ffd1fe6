"""The runbook for a bare CUDA machine, without its trainings (`scripts/gpu/rehearse.sh` does those too): parts that come one by one, damaged or not,
a queue that is killed, fails at one step and runs out of time, and what is believed of its results."""
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time

import pandas as pd
import pytest

stub = '''import argparse, json, os, pathlib, sys, time
p = argparse.ArgumentParser()
for name in ('variant', 'strategy', 'seed', 'epochs', 'out', 'size', 'lr', 'tasks'): p.add_argument('--' + name)
a, _ = p.parse_known_args(sys.argv[2:])
if a.lr == '0.0003' and a.size == '32': sys.exit('simam_ema: this candidate cannot be trained')
if sys.argv[1] == 'benchmark':
    (pathlib.Path(a.out)/'benchmark.csv').write_text('task\\n' + a.tasks); sys.exit()
run = pathlib.Path(a.out)/f'{a.variant}-{a.strategy}-s{a.seed}'
run.mkdir(exist_ok=True)
done = len((run/'history.csv').read_text().splitlines()) - 1 if (run/'history.csv').exists() else 0
if done: print(f'going on after epoch {done}')
else: (run/'history.csv').write_text('epoch,train_seconds\\n')
for epoch in range(done, int(a.epochs)):
    time.sleep(.4)
    with open(run/'history.csv', 'a') as f: f.write(f'{epoch},1.0\\n')
right = 5 + ('--compile' in sys.argv) + 2*('--average' in sys.argv) + ('spatial4' in a.variant)
rows = [f'{i}.png,{i % 3},{(i + (i >= right)) % 3},{(i + (i < right)) % 3}' for i in range(9)]
(run/'predictions.csv').write_text('\\n'.join(['file,true,pred1,pred2', *rows]))
(run/'per_class.csv').write_text('class,n\\na,3\\nb,3\\nc,3\\n')
(run/'config.json').write_text(json.dumps(dict(variant=a.variant, arch='resnet18', recipe=dict(epochs=int(a.epochs)), data=dict(size=int(a.size)))))
(run/'environment.json').write_text(json.dumps(dict(commit=None, fused=os.environ['SIMAM_EMA_FUSED'])))
(run/'weights.pth').write_text('weights')
(run/'metrics.json').write_text(json.dumps(dict(n=9, top1=100*right/9, top5=100*9/9, loss=1., k=2)))
'''
check = 'import pathlib, sys; (pathlib.Path(sys.argv[sys.argv.index("--out") + 1])/"parity.csv").write_text("right"); sys.exit(pathlib.Path("broken").exists() and "a kernel is wrong")'


@pytest.fixture(scope='module')
def gpu(root):
    "scripts/gpu as modules."
    sys.path.insert(0, str(root/'scripts'/'gpu'))
    import archive
    import merge
    import page
    import steps
    return type('gpu', (), dict(archive=archive, merge=merge, page=page, steps=steps, folder=root/'scripts'/'gpu'))


@pytest.fixture(scope='module')
def work(gpu, tmp_path_factory):
    "A machine that was set up part by part, in any order."
    tmp = tmp_path_factory.mktemp('gpu')
    source, out, arrived, work = (tmp/n for n in ('source', 'pack', 'arrived', 'work'))
    for name, text in {'site/bin/simam_ema': stub, 'queue/check.py': 'print("checked")', 'queue/gpu_check.py': check,
                       'pack.json': json.dumps(dict(tiny=True, commit='abc')), 'state.json': json.dumps(dict(done={'speed/eager/hybrid-discriminative+freeze-s1': dict(last=1., slower=0.)}, recipe=None, failed={}))}.items():
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        (source/name).write_text(text)
    for f in ('run_queue.py', 'steps.py', 'archive.py'): shutil.copy(gpu.folder/f, source/'queue'/f)
    (source/'random').write_bytes(os.urandom(900_000))
    files = sorted(f for f in source.rglob('*') if f.is_file())
    parts = gpu.archive.write_archives(out, 'base', [[(f, str(f.relative_to(source)))] for f in files], 1)
    assert len(parts) > 1 and all(f.stat().st_size <= 1e6 for f in parts)
    again = gpu.archive.write_archives(tmp/'again', 'base', [[(f, str(f.relative_to(source)))] for f in files], 1)
    assert [f.read_bytes() for f in parts] == [f.read_bytes() for f in again]
    arrived.mkdir()
    sums = subprocess.run(['sha256sum', *[f.name for f in parts]], cwd=out, capture_output=True, text=True, check=True).stdout
    (arrived/'SHA256SUMS').write_text(sums)
    setup = lambda: subprocess.run(['bash', gpu.folder/'setup.sh', arrived, work], capture_output=True, text=True, env=os.environ | {'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'})
    for f in random.Random(0).sample(parts, len(parts)):
        assert (r := setup()).returncode == 3 and f.name in r.stdout, r
        (arrived/f.name).write_bytes(f.read_bytes() + b'x')
        assert (r := setup()).returncode == 2 and f'{f.name} is damaged' in r.stderr, r
        shutil.copy(f, arrived/f.name)
        last = setup()
        (arrived/f.name).unlink()  # unpacked: not needed any more
    assert last.returncode == 0 and 'checked' in last.stdout and 'ready' in last.stdout, last
    assert 'checked' not in setup().stdout
    return work


def run_queue(work, out, *args):
    return subprocess.Popen([sys.executable, work/'queue'/'run_queue.py', work, '--out', out, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_queue(gpu, work, tmp_path):
    out, runs, better = tmp_path/'out', work/'runs', 'simam@spatial4+ema@residual34-discriminative+freeze-s1'
    p = run_queue(work, out, '--minutes', 5, '--jobs', 2)
    while not (work/'queue.log').exists(): time.sleep(.05)
    assert run_queue(work, out, '--minutes', 5).wait() == 2  # a second one is refused,
    while not (left := [f for f in (work/'started').rglob('history.csv') if len(f.read_text().splitlines()) > 1]): time.sleep(.02)
    p.kill(); p.communicate()                                # and the first dies at once, its trainings with it
    before = [f.read_text() for f in left]
    time.sleep(.7)
    assert left and [f.read_text() for f in left] == before

    p = run_queue(work, out, '--minutes', .45)               # too short for anything to begin, since .4 are kept for the end
    assert 'steps left, next: check/64' in p.communicate()[0] or (runs/'check').exists()
    p = run_queue(work, out, '--minutes', 5, '--jobs', 3)
    said = p.communicate()[0]
    assert 'nothing is left to do' in said and 'FAILED: search/32-optadamw-lr0.0003-bs16' in (work/'queue.log').read_text(), said
    assert any('going on after epoch' in f.read_text() for f in (work/'logs').rglob('*.txt'))
    assert 'speed/eager' not in said                         # state.json: done in an earlier sitting
    done, _, failed = gpu.steps.state_of(runs)
    assert failed == {'search/32-optadamw-lr0.0003-bs16/baseline-uniform-s1': 'simam_ema: this candidate cannot be trained'}
    assert {'check/64', 'speed/compiled/hybrid-discriminative+freeze-s1', '48/hybrid-discriminative+freeze-s1', '64/baseline-uniform-s1', '32/baseline-uniform-s1', 'efficiency/latency', f'beyond/{better}'} <= set(done)
    best = json.loads((runs/'beyond'/better/'step.json').read_text())['argv']
    assert '--average' in best and '--lr' in best and '0.001' in best  # what the searches found best
    assert json.loads((runs/'48'/'baseline-uniform-s1'/'environment.json').read_text())['commit'] == 'abc'

    archives = sorted(out.glob('results-*.tar.gz'))
    names = [n for f in archives for n in tarfile.open(f).getnames()]
    assert 'queue.log' in names and not [n for n in names if n.endswith('.pth')]
    gpu.merge.merge(out, tmp_path/'merged', tmp_path/'tables')
    merged = tmp_path/'merged'
    assert set(gpu.steps.found(merged)) == set(done)
    assert json.loads((merged/'recipe.json').read_text()) == {'opt': 'adamw', 'lr': .001, 'bs': 16}
    assert json.loads((merged/'48'/'baseline-uniform-s1'/'efficiency.json').read_text())['parameters'] == 11_178_051  # ResNet-18, three classes
    search = pd.read_csv(tmp_path/'tables'/'search.csv')
    assert search.search.tolist() == ['beyond']*3 + ['recipe']*3 and search.variant.nunique() == 3 and (tmp_path/'tables'/'check'/'64'/'parity.csv').exists()
    assert 'cannot be trained' in (tmp_path/'tables'/'failed.csv').read_text()
    before = {f: f.stat().st_mtime_ns for f in merged.glob('*/*/*.*')}
    gpu.merge.merge(out, merged, None)                       # twice is once
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_kernels_that_are_wrong(gpu, work, tmp_path, monkeypatch):
    "The gates are trained all the same, in plain PyTorch, and their records say so; what the check found comes back. A full disk where the results go stops nothing."
    made = work/'runs'/'48'/'hybrid-discriminative+freeze-s1'
    assert json.loads((made/'environment.json').read_text())['fused'] == '1' and json.loads((made/'step.json').read_text())['fused']
    for name in (made, work/'runs'/'check'): shutil.rmtree(name)
    (work/'broken').touch()
    p = run_queue(work, tmp_path/'out', '--minutes', 5, '--only', '48')
    said = p.communicate()[0]
    assert 'FAILED: check/64' in said and 'plain PyTorch from here on' in said and 'search/' not in said, said
    assert json.loads((made/'environment.json').read_text())['fused'] == '0' and not json.loads((made/'step.json').read_text())['fused']
    names = [n for f in (tmp_path/'out').glob('*.gz') for n in tarfile.open(f).getnames()]
    assert 'started/check/64/parity.csv' in names and 'runs/failed.json' in names
    import run_queue as module
    queue = module.Queue(work, tmp_path/'out', 1, None, 1, 15)
    monkeypatch.setattr(module, 'write_archives', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    queue.write()
    assert 'cannot be written' in (work/'queue.log').read_text().splitlines()[-1]


def test_what_is_not_believed(gpu, work, tmp_path):
    run = tmp_path/'run'
    source = next((work/'runs'/'64').iterdir())
    for change, line in [(lambda: (run/'metrics.json').write_text(json.dumps(dict(n=9, top1=70., top5=100., k=2))), 'top1 of the predictions is 55.556, its metrics say 70.000'),
                         (lambda: (run/'predictions.csv').unlink(), 'predictions.csv is missing'),
                         (lambda: (run/'history.csv').write_text('epoch\n0\n'), r'epochs \[0\] of 2 are trained')]:
        shutil.copytree(source, run, dirs_exist_ok=True)
        change()
        with pytest.raises(gpu.merge.UserError, match=line): gpu.merge.check(run)
    (tmp_path/'results').mkdir()
    (tmp_path/'results'/'results-0.tar.gz').write_bytes(b'not whole')
    with pytest.raises(gpu.merge.UserError, match='results-0.tar.gz is damaged'): gpu.merge.merge(tmp_path/'results', tmp_path/'runs', None)


def a_run(folder, variant, strategy, right, n=1000, seed=1, fused=True):
    "What a training of the study leaves behind, with so many of `n` pictures answered right."
    run = folder/f'{variant}-{strategy}-s{seed}'
    run.mkdir(parents=True)
    true = [i % 200 for i in range(n)]
    shift = [int(random.Random(i).random() >= right) for i in range(n)]  # the same pictures are the hard ones for all
    rows = [f'{i:05}.png,{t},.5,{(t + s) % 200},{(t + 1 - s) % 200},.5,.2' for i, (t, s) in enumerate(zip(true, shift))]
    (run/'predictions.csv').write_text('\n'.join(['file,true,prob_true,pred1,pred2,prob1,prob2', *rows]))
    (run/'per_class.csv').write_text('\n'.join(['class,n,top1', *(f'n{i:08},10,50' for i in range(200))]))
    (run/'history.csv').write_text('\n'.join(['epoch,train_loss,valid_loss,accuracy,train_seconds,seconds', *(f'{e},1,1,.5,9,10' for e in range(20))]))
    top1 = 100*(1 - sum(shift)/n)
    for name, d in dict(config=dict(variant=variant, recipe=dict(epochs=20, strategy=strategy, seed=seed, lr=1e-3), data=dict(name='tiny_imagenet', size=128), arch='resnet50', weights='npm', overrides=None),
                        environment=dict(packages=dict(torch='2.11.0', fastai='2.8.7'), python='3.12.3', commit='abc', cpu='a CPU', cores=16, gpu='a GPU', command='simam_ema train'),
                        metrics=dict(n=n, top1=top1, top5=100., k=2, loss=1., epochs=20, train_seconds=180., seconds=200.), efficiency=dict(parameters=1, gflops=1., size=128),
                        step=dict(argv=['simam_ema', 'train', '--variant', variant, '--out', '{out}'], estimate=8., minutes=5., beside=2, fresh=True, fused=fused)).items(): (run/f'{name}.json').write_text(json.dumps(d))


def test_page(gpu, tmp_path, monkeypatch):
    "What reproduced, what did not, why as far as the runs tell, and what is missing."
    runs, out = tmp_path/'runs', tmp_path/'out'
    for variant, strategy, right in [('baseline', 'uniform', .766), ('baseline', 'discriminative+freeze', .80), ('hybrid', 'uniform', .69), ('hybrid', 'discriminative+freeze', .70)]:
        a_run(runs/'128', variant, strategy, right, fused=variant == 'baseline')
    a_run(runs/'beyond', 'simam@spatial4+ema@residual34', 'discriminative+freeze', .83)
    (runs/'recipe.json').write_text(json.dumps(dict(opt='adamw', lr=1e-3, bs=256)))
    (runs/'failed.json').write_text(json.dumps({'128/ema-uniform-s1': 'simam_ema: out of GPU memory', '128/baseline-uniform-s1': 'done since'}))
    reports = []
    monkeypatch.setattr(gpu.page, 'report', lambda *a, **k: reports.append(a))  # has tests of its own, and takes its time to draw
    said = gpu.page.page(runs, out)
    line = lambda start: next(s for s in said.splitlines() if s.startswith(start))
    assert line('- **128') == '- **128×128 pixels**: 1 of 6 published figures are reproduced.' and line('  - Reproduced') == '  - Reproduced: Top-1 of baseline.'
    assert 'Top-1 of hybrid; Top-1 over baseline of hybrid' in line('  - Measured lower') and line('  - Not measured') == '  - Not measured: simam, ema.'
    assert line('| Top-1, % | hybrid').startswith('| Top-1, % | hybrid | 77.84 | 7') and '| +1.23 | −' in line('| Top-1 over')
    assert 'come from the training strategy' in said and 'trained once. Two trainings' in said
    assert 'Without the GPU kernels, which a check had found wrong: 2 runs of hybrid.' in said
    left = line('- 128: ')
    assert 'simam-uniform-s1' in left and 'baseline-uniform-s2' in left and 'baseline-uniform-s1' not in left and 'baseline-uniform-s1' in line('- 224: ')
    assert '- 128/ema-uniform-s1: simam_ema: out of GPU memory' in said and 'done since' not in said
    assert 'Top-1 8' in line('Top-1') and '    simam_ema train --variant simam@spatial4+ema@residual34' in said
    assert reports == [(runs/'128', out/'128')] and {'reproduction.csv', 'counts.csv'} == {f.name for f in out.iterdir()}
    shutil.rmtree(runs); runs.mkdir()                        # before the first result there is a page too
    assert '- The search of the recipe, and all that waits for it: 6 candidates' in gpu.page.page(runs, out)


def test_plan(gpu):
    "Under a frozen recipe the queue names the whole study, and no step twice; four variants fit into the hour and into 17 minutes at 128 pixels, by estimate."
    steps = gpu.steps.queue({}, gpu.steps.full, dict(opt='adamw', lr=1e-3, bs=256, compile=True))
    assert len({s.key for s in steps}) == len(steps)
    four = [f'{v}-s1' for v in ('baseline-uniform', 'simam-uniform', 'ema-uniform', 'hybrid-discriminative+freeze')]
    minutes = lambda size: sum(s.minutes/s.beside for s in steps if s.setting == size and s.name in four)
    assert minutes('224') < 60 and minutes('128') < 17, (minutes('224'), minutes('128'))
    assert {s.setting for s in steps if not s.gated} == {'check', '128', '224', '64'}
    order = [s.key for s in steps]
    assert order.index('128/hybrid-uniform-s1') < order.index('128/baseline-uniform-s2') < order.index('224/baseline-uniform-s1') < order.index('64/baseline-uniform-s1')
