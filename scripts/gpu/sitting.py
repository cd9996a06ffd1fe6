"""On the bare machine: python3 PACK/sitting.py PACK WORK OUT SECONDS [STAGE…]

Unpacks what has arrived, then works through plan.py until the time is over. Repeat it after every part and every kill:
what is done is skipped, a training goes on from its last epoch. OUT gets results.tar.gz, all that was found so far
without weights, after every command. Exit status: 0 all done, 3 something is left or not here, 2 a part is damaged."""
import ctypes
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

heavy = ('.pth', '.pkl', '.safetensors', '.onnx')  # weights: made again by a run's command

def unpack(pack, work):
    "Unpack the parts that have arrived; the names of those that have not, and of those that are damaged."
    missing, damaged = [], []
    for name, digest in json.loads((pack/'parts.json').read_text()).items():
        part, mark = pack/name, work/f'unpacked-{digest}'
        if mark.exists(): continue
        if not part.exists(): missing.append(name)
        elif hashlib.sha256(part.read_bytes()).hexdigest() != digest: damaged.append(name)
        else:
            with tarfile.open(part) as tar: tar.extractall(work)  # verified; not every Python has a filter
            mark.touch()
    if missing or damaged: print(f'not here yet: {missing}; damaged, to be copied again: {damaged}', flush=True)
    return missing, damaged

class Job:
    "A command under way, in WORK/steps/STAGE/NAME."
    def __init__(self, work, stage, name, command):
        self.key, self.start, self.folder = f'{stage.name}/{name}', time.time(), work/'steps'/stage.name/name
        self.folder.mkdir(parents=True, exist_ok=True)
        first, *rest = command.format(data=work/'data', weights=work/'weights.pth', out=self.folder).split()
        program = [str(work/'gpu_check.py')] if first == 'gpu_check' else ['-m', 'simam_ema_fastai', first]
        self.argv, env = program + rest, dict(
            PYTHONPATH=str(work/'site'), SIMAM_EMA_HOME=str(work/'home'), MPLBACKEND='agg', PYTHONUNBUFFERED='1',
            TRITON_CACHE_DIR=str(work/'triton'), TORCHINDUCTOR_CACHE_DIR=str(work/'inductor'))
        if (work/'kernels_are_wrong').exists(): env['SIMAM_EMA_KERNELS'] = 'plain'
        with open(self.folder/'log.txt', 'a') as log:
            self.process = subprocess.Popen(  # hears SIGINT, under nohup too; dies with its parent
                [sys.executable, *self.argv], env=os.environ | env, cwd=work, stdout=log, stderr=log,
                preexec_fn=lambda: (signal.signal(2, signal.SIG_DFL), ctypes.CDLL(None).prctl(1, signal.SIGKILL)))

    def end(self, work, jobs):
        "Note what became of it: a kernel that is wrong is a finding; anything else that fails is tried again."
        rc, seconds = self.process.returncode, round(time.time() - self.start, 1)
        wrong = rc == 1 and self.argv[0].endswith('gpu_check.py')
        if wrong: (work/'kernels_are_wrong').touch()
        name = 'step.json' if rc == 0 or wrong else 'failed.json'
        (self.folder/name).write_text(json.dumps(dict(argv=self.argv, seconds=seconds, status=rc, jobs=jobs)))
        last = (self.folder/'log.txt').read_text(errors='replace').strip().splitlines()[-1:]
        print(f'{self.key}: status {rc} after {seconds} s', 'plain gates from here on'*wrong, *last, flush=True)
        return name == 'step.json'

def write_results(work, out):
    "All that was found, in one archive that appears whole."
    with tarfile.open(out/'results.tmp', 'w:gz') as tar:
        tar.add(work/'commit.txt', 'commit.txt')
        for f in (work/'steps').rglob('*'):
            if f.is_file() and f.suffix not in heavy and f.name[0] != '.': tar.add(f, f.relative_to(work/'steps'))
    os.replace(out/'results.tmp', out/'results.tar.gz')

def run(stage, work, out, end):
    "Work through a stage until `end`; whether all of it is done."
    todo = [(n, c) for n, c in stage.commands.items() if not (work/'steps'/stage.name/n/'step.json').exists()]
    running, jobs, ok = [], min(stage.jobs, len(todo)), True
    while todo or running:
        while todo and len(running) < jobs and time.time() < end - stage.least:
            running.append(Job(work, stage, *todo.pop(0)))
        if not running: break
        for kind in [signal.SIGINT]*(time.time() > end) + [signal.SIGKILL]*(time.time() > end + 10):
            for job in running: job.process.send_signal(kind)  # a training keeps the checkpoint of its last epoch
        time.sleep(.2 if time.time() < end else 5)
        for job in [j for j in running if j.process.poll() is not None]:
            running.remove(job)
            ok &= job.end(work, jobs)
            write_results(work, out)
    return ok and not todo

def main(pack, work, out, seconds, *wanted):
    end = time.time() + seconds - 25  # 25 s to end what runs and to write results
    for folder in (work/'steps', out): folder.mkdir(parents=True, exist_ok=True)
    with open(work/'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        missing, damaged = unpack(pack, work)
        if not (work/'plan.py').exists(): return 2 if damaged else 3
        sys.path.insert(0, str(work))
        from plan import stages
        here = [s for s in stages if not s.needs_data or not missing + damaged]
        ok = [run(s, work, out, min(end, time.time() + s.seconds)) for s in here if not wanted or s.name in wanted]
        write_results(work, out)
    return 2 if damaged else 3*bool(missing or not all(ok))

if len(sys.argv) < 5: sys.exit(__doc__)
sys.exit(main(*(Path(a).absolute() for a in sys.argv[1:4]), float(sys.argv[4]), *sys.argv[5:]))
