"The project as a whole: README, requirements, names of this machine."
import subprocess
import sys


def test_readme_is_the_index_notebook(root):
    r = subprocess.run([sys.executable, root/'scripts'/'readme.py', '--check'], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_import_is_quiet_and_offline(root):
    "Importing every module prints nothing and opens no connection."
    code = ("import sys, pathlib, importlib\n"
            "def refuse(event, args):\n"
            "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto', 'socket.bind'): raise AssertionError(f'{event} at import')\n"
            "sys.addaudithook(refuse)\n"
            "import simam_ema_fastai\n"
            "for f in pathlib.Path(simam_ema_fastai.__file__).parent.glob('*.py'): importlib.import_module(f'simam_ema_fastai.{f.stem}')\n")
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert (r.returncode, r.stdout, r.stderr) == (0, '', '')


def test_no_warning_of_torchscript_here_or_in_a_spawned_process():
    "fastai and fvcore set it off when they are imported; other warnings of its kind are seen as before."
    code = ("import importlib, multiprocessing, warnings\n"
            "if __name__ == '__main__':\n    import simam_ema_fastai.learner, simam_ema_fastai.efficiency\n"
            "    p = multiprocessing.get_context('spawn').Process(target=importlib.import_module, args=('simam_ema_fastai.efficiency',))\n"
            "    p.start(); p.join()\n"
            "    warnings.warn('of another kind', FutureWarning)\n")
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and 'torch.jit.script' not in r.stderr and 'of another kind' in r.stderr, r.stderr


def test_scripts_are_the_commands(root):
    from simam_ema_fastai.cli import commands
    for command in set(commands) - {'weights', 'cache'}:
        r = subprocess.run([sys.executable, root/'scripts'/f'{command}.py', '--help'], capture_output=True, text=True)
        assert r.returncode == 0 and r.stdout.startswith(f'usage: simam_ema {command} '), r.stderr
