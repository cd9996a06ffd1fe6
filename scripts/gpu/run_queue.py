"""On the bare machine: work through the queue until the time is over.

    python3 WORK/queue/run_queue.py WORK --minutes N --out OUT [--only 128,224] [--jobs J]

What is done is skipped, what was interrupted goes on from its last epoch: the same command can be killed and repeated at any moment.
A step begins only if it is thought to end in time. OUT gets results-*.tar.gz (all that was found on this machine, without weights) after every step, and queue.log."""
import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import steps
from archive import light_files, write_archives

last_words = .4 # Minutes kept at the end to stop trainings and write results

def _replace(file:Path, text:str):
    (tmp := file.with_name(f'.{file.name}')).write_text(text)
    os.replace(tmp, file)

def _die_with_parent(): ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphan keeps the GPU or a lock

class Job:
    "A step under way in a process of its own, writing below WORK/started until it is done; packages, cache and compiled kernels lie in WORK too."
    def __init__(self, work:Path, step:steps.Step, fused:bool):
        self.step, self.start, self.most, self.fused = step, time.monotonic(), 1, fused
        self.folder, self.log = work/'started'/step.key, work/'logs'/f'{step.key}.txt'
        self.fresh = not self.folder.exists()
        for d in (self.folder, self.log.parent): d.mkdir(parents=True, exist_ok=True)
        places = {'data': work/'home'/'tiny_imagenet'/'tiny-imagenet-200', 'out': self.folder}
        program = work/'site'/'bin'/'simam_ema' if step.argv[0] == 'simam_ema' else work/'queue'/step.argv[0]
        env = os.environ | dict(PYTHONPATH=str(work/'site'), SIMAM_EMA_HOME=str(work/'home'), MPLBACKEND='agg', PYTHONUNBUFFERED='1',
                                TORCHINDUCTOR_CACHE_DIR=str(work/'compiled'/'inductor'), TRITON_CACHE_DIR=str(work/'compiled'/'triton'), SIMAM_EMA_FUSED=str(int(fused)))
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen([sys.executable, program, *(a.format(**places) for a in step.argv[1:])], env=env, cwd=work,
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent)

    @property
    def minutes(self) -> float: return (time.monotonic() - self.start)/60
    def last_line(self) -> str: return (self.log.read_text(errors='replace').strip().splitlines() or ['starting'])[-1].strip()[:200]

    def finish(self, runs:Path, commit:str|None) -> bool:
        "Whether the step succeeded; what it wrote is then moved to where finished steps are, with the commit it was packed from."
        if self.process.returncode: return False
        run = self.folder/self.step.name if (self.folder/self.step.name).is_dir() else self.folder
        if (record := run/'environment.json').exists():
            envs = json.loads(record.read_text())
            record.write_text(json.dumps([{**e, 'commit': commit} for e in envs] if isinstance(envs, list) else {**envs, 'commit': commit}, indent=2))
        about = dict(argv=self.step.argv, estimate=self.step.minutes, minutes=self.minutes, beside=self.most, fresh=self.fresh, fused=self.fused)
        (run/'step.json').write_text(json.dumps(about, indent=2))
        (runs/self.step.key).parent.mkdir(parents=True, exist_ok=True)
        os.replace(run, runs/self.step.key)
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

class Queue:
    def __init__(self, work:Path, out:Path, minutes:float, only:str|None, jobs:int, mb:float):
        self.work, self.out, self.jobs, self.mb, self.runs = work, out, jobs, mb, work/'runs'
        self.only = tuple(only.split(',')) if only else ('',)
        self.deadline = time.monotonic() + 60*(minutes - last_words)
        pack = json.loads((work/'pack.json').read_text())
        self.scale, self.commit = steps.tiny if pack['tiny'] else steps.full, pack['commit']
        self.state = json.loads((work/'state.json').read_text())
        for folder in (out, self.runs): folder.mkdir(parents=True, exist_ok=True)
        before = self.state['failed'] | steps.state_of(self.runs)[2]
        self.running, self.failed = [], {k: before[k] for k in steps.hopeless(before)} # `failed`: key to last words

    @property
    def left(self) -> float: return (self.deadline - time.monotonic())/60

    def say(self, text:str):
        line = f'{time.strftime("%H:%M:%S")} {text}'
        print(line, flush=True)
        with contextlib.suppress(OSError):  # a full disk ends trainings, not the queue
            with open(self.work/'queue.log', 'a') as f: f.write(line + '\n')
            shutil.copy(self.work/'queue.log', self.out/'queue.log')

    def todo(self) -> list[steps.Step]:
        "Steps to begin or to go on with, in order."
        done, frozen, _ = steps.state_of(self.runs)
        done, frozen, failed = self.state['done'] | done, frozen or self.state['recipe'], frozenset(self.failed)
        if not frozen and (frozen := steps.recipe_of(done, self.scale, failed)):
            _replace(self.runs/'recipe.json', json.dumps(frozen))
            self.say(f'recipe: {frozen}')
        todo = [s for s in steps.queue(done, self.scale, frozen, failed) if s.key not in done and s.key not in failed]
        checking, busy = any(s.setting == 'check' for s in todo), {j.step.key for j in self.running}
        return [s for s in todo if s.key not in busy and s.setting.startswith(('check', *self.only)) and not (s.gated and checking)]

    @property
    def fused(self) -> bool: return not any(k.startswith('check/') for k in self.failed) # Whether the gates' kernels can be relied on

    def factor(self) -> float:
        "How much longer steps take here than thought: the median."
        made = [json.loads(f.read_text()) for f in self.runs.rglob('step.json')]
        return statistics.median([m['minutes']/m['estimate'] for m in made if m['fresh']] or [1.])

    def next(self) -> steps.Step|None:
        "The first step that may run beside what runs, and fits into the time left."
        factor, n = self.factor(), len(self.running)
        room = lambda s: n < min([self.jobs, s.beside, *(j.step.beside for j in self.running)])
        return next((s for s in self.todo() if room(s) and s.minutes*factor <= self.left), None)

    def write(self):
        "All that was found on this machine, in archives that stand by themselves."
        named = lambda files: [(f, str(f.relative_to(self.work))) for f in files if f.exists()]
        logs = [self.work/'pack.json', self.work/'queue.log', self.runs/'recipe.json', self.runs/'failed.json', *light_files(self.work/'logs')]
        unfinished = named(light_files(self.work/'started'))  # to look at: merge.py leaves it alone
        try: write_archives(self.out, 'results', [named(logs) + unfinished, *(named(light_files(self.runs/k)) for k in steps.found(self.runs))], self.mb)
        except OSError as e: self.say(f'the results cannot be written to {self.out}: {e.strerror}. Make room; --minutes 0 writes them again.')

    def harvest(self) -> bool: # Whether a step ended
        ended = [j for j in self.running if j.process.poll() is not None]
        for j in ended:
            self.running.remove(j)
            ok = j.finish(self.runs, self.commit)
            self.say(f"{'done' if ok else 'FAILED'}: {j.step.key}, {j.minutes:.1f} min (thought {j.step.minutes:.1f})" + ('' if ok else f': {j.last_line()}'))
            if not ok:
                self.failed[j.step.key] = j.last_line()
                _replace(self.runs/'failed.json', json.dumps(self.failed, indent=2))
                if j.step.setting == 'check': self.say('the gates do without their GPU kernels: plain PyTorch from here on')
        return bool(ended)

    def stop(self):
        "End what runs: a training leaves the checkpoint of its last epoch."
        for j in self.running: j.process.send_signal(signal.SIGINT)
        end = time.monotonic() + 10
        for j in self.running:
            try: j.process.wait(max(.1, end - time.monotonic()))
            except subprocess.TimeoutExpired: j.process.kill(); j.process.wait()
            if j.process.returncode: self.say(f'interrupted: {j.step.key}, {j.last_line()}')
        self.running = [j for j in self.running if not j.process.returncode]
        self.harvest()

    def work_through(self):
        beat = 0.
        while True:
            ended = self.harvest()
            while self.left > 0 and (step := self.next()):
                self.running.append(Job(self.work, step, self.fused))
                for j in self.running: j.most = max(j.most, len(self.running))
                self.say(f"{'begun' if self.running[-1].fresh else 'going on'}: {step.key}")
            if ended: self.write()
            if not self.running or self.left <= 0: break
            if time.monotonic() > beat:
                beat = time.monotonic() + 30
                self.say(f'{self.left:.1f} min left, {gpu()}; ' + '; '.join(f'{j.step.key}: {j.last_line()}' for j in self.running))
            time.sleep(.2)
        self.stop()
        todo = self.todo()
        self.say(f'{len(todo)} steps left, next: {todo[0].key}, {todo[0].minutes*self.factor():.0f} min' if todo else 'nothing is left to do')
        self.write()

def gpu() -> str:
    "What the GPU does, if there is one."
    try: return subprocess.run(['nvidia-smi', '--query-gpu=utilization.gpu,memory.used', '--format=csv,noheader'], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError): return 'no GPU'

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('work', type=Path, help='folder that setup.sh filled')
    p.add_argument('--minutes', type=float, required=True, help='stop before so many are over; 0 only writes what there is')
    p.add_argument('--out', type=Path, required=True, help='folder for results-*.tar.gz and queue.log')
    p.add_argument('--only', help='only steps whose setting begins so, separated by commas: check, speed, search, 128, 224, 64, efficiency, beyond')
    p.add_argument('--jobs', type=int, default=16, help='steps at a time, at most; each says itself how many it bears beside it')
    p.add_argument('--mb', type=float, default=15, help='largest file written to OUT')
    a = p.parse_args()
    if not (a.work/'ready').exists(): print(f'run_queue: {a.work} is not set up: run setup.sh until it says so.', file=sys.stderr); sys.exit(2)
    queue = Queue(a.work.absolute(), a.out.absolute(), a.minutes, a.only, a.jobs, a.mb)
    if not a.minutes: return queue.write()
    with open(a.work/'.lock', 'w') as lock:
        try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: print(f'run_queue: another one works in {a.work}; --minutes 0 writes what there is.', file=sys.stderr); sys.exit(2)
        queue.work_through()

if __name__ == '__main__': main()
