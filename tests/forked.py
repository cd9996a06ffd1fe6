"""Run the command line in processes that start in milliseconds, and inject faults into them.

The processes are forked from a server that has imported everything and computed nothing."""
import multiprocessing
import os
import signal
import sys
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

_forks = multiprocessing.get_context('forkserver')
_forks.set_forkserver_preload(['simam_ema_fastai.cli', 'simam_ema_fastai.experiments.ablation',
                               'simam_ema_fastai.report.page', 'simam_ema_fastai.deploy.explain', 'sklearn.datasets'])


def _redirect(fd, file):
    return os.fdopen(os.dup2(os.open(file, os.O_WRONLY|os.O_CREAT), fd), 'w', buffering=1)


def _main(argv, out, err, faults):
    sys.stdout, sys.stderr = _redirect(1, out), _redirect(2, err)
    multiprocessing.set_start_method('fork', force=True)  # for the workers of data loaders, as in a process of its own
    for inject, *args in faults: inject(*args)
    from simam_ema_fastai.cli import main
    status = main(argv)
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(status)


class Run(_forks.Process):
    "A command under way; `kill()` is kill -9."
    def __init__(self, folder, argv, faults):
        n = len(list(folder.iterdir()))
        self.files = folder/f'{n}.out', folder/f'{n}.err'
        for f in self.files: f.touch()
        super().__init__(target=_main, args=([str(a) for a in argv], *self.files, faults))

    def end(self, timeout=300):
        "Wait for it: exit status, output, errors."
        self.join(timeout)
        assert self.exitcode is not None, f'still running after {timeout} s\n{self.texts()}'
        return self.exitcode, *self.texts()

    def texts(self): return tuple(f.read_text() for f in self.files)


class Forked:
    "Starts commands; each of `faults` is a function of this module with its arguments, called before the command."
    def __init__(self, folder): self.folder = folder
    def start(self, *argv, faults=()):
        p = Run(self.folder, argv, faults)
        p.start()
        return p
    def __call__(self, *argv, faults=()): return self.start(*argv, faults=faults).end()


def spared(*what):
    "Neither measured nor reported ('measure', 'report'), where a test is about neither."
    import simam_ema_fastai.commands.experiments as commands
    import simam_ema_fastai.experiments.ablation as ablation
    if 'measure' in what: ablation.measure_costs = lambda *a: None
    if 'report' in what: commands._print_report = lambda *_: None


def killed_writing(name, nth, when):
    """kill -9 at the `nth` write of a file called `name` (a pattern).

    'half': with half of a tensor file written; 'before' or 'after': it gets its name."""
    import torch
    seen, save, rename = [], torch.save, os.replace
    def due(target, moment):
        pattern = name + '*'*(moment == 'half')
        if moment == when and fnmatch(Path(target).name.removeprefix('.'), pattern): seen.append(target)
        return len(seen) == nth
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    def half_saved(obj, f, *args, **kwargs):
        if isinstance(f, (str, Path)) and due(f, 'half'):
            save(obj, whole := BytesIO())
            Path(f).write_bytes(whole.getvalue()[:whole.tell()//2])
            die()
        return save(obj, f, *args, **kwargs)
    def replaced(a, b, **kwargs):
        if due(b, 'before'): die()
        rename(a, b, **kwargs)
        if due(b, 'after'): die()
    torch.save, os.replace = half_saved, replaced


def files_limited(n_bytes):
    "No file may grow beyond `n_bytes`."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def worker_killed(history):
    "kill -9 for the process that loads images, as soon as there is a `history`."
    from torch.utils.data import get_worker_info

    from simam_ema_fastai.data.loader import DecodedDL
    load = DecodedDL._on_host
    def killed(self, *args):
        if get_worker_info() and Path(history).exists(): os.kill(os.getpid(), signal.SIGKILL)
        return load(self, *args)
    DecodedDL._on_host = killed


def at_batch(epoch, batch, what, variant=None):
    """At one batch (both counted from 0) of one variant, or of all.

    The loss is multiplied by `what`, or it is raised, or it is the signal sent."""
    from fastai.callback.core import Callback
    from fastai.learner import Learner
    from fastai.torch_core import get_model
    from fastcore.foundation import L

    from simam_ema_fastai.models.variants import variant_name
    class Break(Callback):
        def after_loss(self):
            if not self.training or (self.epoch, self.iter) != (epoch, batch): return
            if variant not in (None, variant_name(get_model(self.model).variant)): return
            if isinstance(what, signal.Signals): os.kill(os.getpid(), what)
            elif isinstance(what, float): self.learn.loss_grad = self.learn.loss = self.loss*what
            else: raise what
    fit = Learner.fit
    def breaking(self, *args, cbs=None, **kwargs): return fit(self, *args, cbs=L(cbs) + Break(), **kwargs)
    Learner.fit = breaking


def one_of_two(rank, port):
    "What a launcher tells each of two processes."
    import torch
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
                       MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                       ACCELERATE_USE_CPU='yes', GLOO_SOCKET_IFNAME='lo', OMP_NUM_THREADS='1')
    torch.set_num_threads(1)


def evaluation_fails(e):
    "The evaluation after the training raises `e`."
    import simam_ema_fastai.experiments.runner as runner
    def fail(*args, **kwargs): raise e
    runner.evaluate = fail
