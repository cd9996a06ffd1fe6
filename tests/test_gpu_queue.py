"""The runbook for a bare CUDA machine, without its trainings (`scripts/gpu/rehearse.sh` does those too): parts that come one by one, damaged or not,
a queue that is killed, fails at one step and runs out of time, and what is believed of its results."""
import json, os, random, shutil, subprocess, sys, tarfile, time

import pandas as pd
import pytest

stub = '''import argparse, json, pathlib, sys, time
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
right = 5 + ('--compile' in sys.argv) + 2*('--average' in sys.argv)
rows = [f'{i}.png,{i % 3},{(i + (i >= right)) % 3},{(i + (i < right)) % 3}' for i in range(9)]
(run/'predictions.csv').write_text('\\n'.join(['file,true,pred1,pred2', *rows]))
(run/'per_class.csv').write_text('class,n\\na,3\\nb,3\\nc,3\\n')
(run/'config.json').write_text(json.dumps(dict(variant=a.variant, arch='resnet18', recipe=dict(epochs=int(a.epochs)), data=dict(size=int(a.size)))))
(run/'environment.json').write_text(json.dumps(dict(commit=None)))
(run/'weights.pth').write_text('weights')
(run/'metrics.json').write_text(json.dumps(dict(n=9, top1=100*right/9, top5=100*9/9, loss=1., k=2)))
'''


@pytest.fixture(scope='module')
def gpu(root):
    "scripts/gpu as modules."
    sys.path.insert(0, str(root/'scripts'/'gpu'))
    import archive, merge, steps
    return type('gpu', (), dict(archive=archive, merge=merge, steps=steps, folder=root/'scripts'/'gpu'))


@pytest.fixture(scope='module')
def work(gpu, tmp_path_factory):
    "A machine that was set up part by part, in any order."
    tmp = tmp_path_factory.mktemp('gpu')
    source, out, arrived, work = (tmp/n for n in ('source', 'pack', 'arrived', 'work'))
    for name, text in {'site/bin/simam_ema': stub, 'queue/check.py': 'print("checked")', 'queue/gpu_check.py': 'import pathlib, sys; (pathlib.Path(sys.argv[-1])/"parity.csv").write_text("ok")',
                       'pack.json': json.dumps(dict(tiny=True, commit='abc')), 'state.json': json.dumps(dict(done={'speed/eager/baseline-uniform-s1': {}}, recipe=None))}.items():
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
    out, runs = tmp_path/'out', work/'runs'
    p = run_queue(work, out, '--minutes', 5, '--jobs', 2)
    while not (work/'queue.log').exists(): time.sleep(.05)
    assert run_queue(work, out, '--minutes', 5).wait() == 2  # a second one is refused,
    while not (left := [f for f in (work/'started').rglob('history.csv') if len(f.read_text().splitlines()) > 1]): time.sleep(.02)
    p.kill(); p.communicate()                                # and the first dies at once, its trainings with it
    before = [f.read_text() for f in left]
    time.sleep(.7)
    assert left and [f.read_text() for f in left] == before

    p = run_queue(work, out, '--minutes', .45)               # too short for anything to begin, since .4 are kept for the end
    assert 'steps left, next: check/kernels' in p.communicate()[0] or (runs/'check').exists()
    p = run_queue(work, out, '--minutes', 5, '--jobs', 3)
    said = p.communicate()[0]
    assert 'nothing is left to do' in said and 'FAILED: search/32-optadamw-lr0.0003-bs16' in (work/'queue.log').read_text(), said
    assert any('going on after epoch' in f.read_text() for f in (work/'logs').rglob('*.txt'))
    assert 'speed/eager' not in said                         # state.json: done in an earlier sitting
    done, _ = gpu.steps.state_of(runs)
    assert {'check/kernels', 'speed/compiled/baseline-uniform-s1', '48/hybrid-discriminative+freeze-s1', '64/baseline-uniform-s1', '32/baseline-uniform-s1', 'efficiency/latency', 'beyond/hybrid-discriminative+freeze-s1'} <= set(done)
    best = json.loads((runs/'beyond'/'hybrid-discriminative+freeze-s1'/'step.json').read_text())['argv']
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
    assert len(pd.read_csv(tmp_path/'tables'/'search.csv')) == 5 and (tmp_path/'tables'/'check'/'kernels'/'parity.csv').exists()
    before = {f: f.stat().st_mtime_ns for f in merged.glob('*/*/*.*')}
    gpu.merge.merge(out, merged, None)                       # twice is once
    assert {f: f.stat().st_mtime_ns for f in before} == before


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


def test_plan(gpu):
    "Under a frozen recipe the queue names the whole study, and no step twice; four variants fit into the hour and into 17 minutes at 128 pixels, by estimate."
    steps = gpu.steps.queue({}, gpu.steps.full, dict(opt='adamw', lr=1e-3, bs=256, compile=True))
    assert len({s.key for s in steps}) == len(steps)
    four = [f'{v}-s1' for v in ('baseline-uniform', 'simam-uniform', 'ema-uniform', 'hybrid-discriminative+freeze')]
    minutes = lambda size: sum(s.minutes/s.beside for s in steps if s.setting == size and s.name in four)
    assert minutes('224') < 60 and minutes('128') < 17, (minutes('224'), minutes('128'))
    assert {s.setting for s in steps if not s.gated} == {'check', 'speed/eager', 'speed/compiled', '128', '224', '64'}
    order = [s.key for s in steps]
    assert order.index('128/hybrid-uniform-s1') < order.index('128/baseline-uniform-s2') < order.index('224/baseline-uniform-s1') < order.index('64/baseline-uniform-s1')
