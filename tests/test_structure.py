"The plan of the house: which wing may import which, and how large a room may be."
import ast
import re
import statistics
from functools import cache
from pathlib import Path

import pytest

package = Path(__file__).parents[1]/'simam_ema_fastai'
wings = ['core', 'runtime', 'attention', 'models', 'data', 'training', 'deploy', 'experiments', 'report',
         'options', 'commands', 'cli']
exceptions = {('runtime.classifier', 'deploy.load')}  # a PyTorch bundle is opened lazily, where PyTorch is installed
outside = {'all', '__main__'}  # what a user meets: may import everything


@cache
def modules() -> dict[str,ast.Module]:
    files = [f for f in package.rglob('*.py') if f.name not in ('__init__.py', '_modidx.py')]
    def name(f): return '.'.join(f.relative_to(package).with_suffix('').parts)
    return {name(f): ast.parse(f.read_text(encoding='utf-8')) for f in files}


@cache
def imports() -> set[tuple[str,str]]:
    "(importing module, imported module), the lazy imports within functions included."
    def targets(name, node):
        if isinstance(node, ast.Import): dotted = [a.name for a in node.names]
        else:
            base = ('simam_ema_fastai.' + name).split('.')[:-node.level] if node.level else []
            dotted = ['.'.join([*base, *filter(None, [node.module]), a.name]) for a in node.names]
        for d in dotted:
            parts = d.split('.')
            if parts[0] != 'simam_ema_fastai': continue
            yield next((m for n in range(len(parts), 1, -1) if (m := '.'.join(parts[1:n])) in modules()), None)
    return {(name, to) for name, tree in modules().items() for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom)) for to in targets(name, node) if to and to != name}


def test_every_module_stands_in_a_wing():
    assert {name.split('.')[0] for name in modules()} - outside == {*wings}


def test_imports_lead_leftwards_only():
    right = {(a, b) for a, b in imports() if a not in outside
             and wings.index(a.split('.')[0]) < wings.index(b.split('.')[0])}
    assert right == exceptions


def numbers() -> dict[str,str]:
    "The number of the notebook that a module is exported from."
    found = {}
    for f in (package.parent/'nbs').rglob('[0-9]*.ipynb'):
        text = f.read_text(encoding='utf-8')
        if module := re.search(r'#\| default_exp ([\w.]+)', text): found[module[1]] = f.stem[:2]
    return found


def test_inside_a_wing_imports_follow_the_numbers():
    of = numbers()
    wrong = [(a, b) for a, b in imports() if a.split('.')[0] == b.split('.')[0] and of[a] <= of[b]]
    assert not wrong
    assert len({(m.split('.')[0], n) for m, n in of.items() if '.' in m}) == len([m for m in of if '.' in m])


def test_no_circle():
    graph = {m: {b for a, b in imports() if a == m and (a, b) not in exceptions} for m in modules()}
    while leaves := [m for m, to in graph.items() if not to & graph.keys()]:
        for m in leaves: del graph[m]
    assert not graph


def test_no_name_means_two_things():
    homes = {}
    for module, tree in modules().items():
        assigned = {getattr(n.targets[0], 'id', ''): n.value for n in tree.body if isinstance(n, ast.Assign)}
        names = ast.literal_eval(assigned['__all__']) if '__all__' in assigned else []
        for name in names: homes.setdefault(name, []).append(module)
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_modules_are_short():
    def length(m): return len((package/f'{m.replace(".", "/")}.py').read_text(encoding='utf-8').splitlines())
    lengths = {m: length(m) for m in modules()}
    assert not {m: n for m, n in lengths.items() if n > 400}
    assert statistics.median(lengths.values()) <= 150


def test_the_wings_open_without_torch():
    assert all(not f.read_text().strip() for f in package.glob('*/__init__.py') if f.parent.name != 'all')


@pytest.mark.parametrize('folder', ['simam_ema_fastai', 'scripts', 'tests'])
def test_no_f_string_inside_another(folder):
    def nested(tree):
        parts = [part for s in ast.walk(tree) if isinstance(s, ast.JoinedStr)
                 for part in s.values if isinstance(part, ast.FormattedValue)]
        return [n.lineno for part in parts for n in ast.walk(part)
                if isinstance(n, ast.JoinedStr) and n is not part.format_spec]
    files = (package.parent/folder).rglob('*.py')
    assert not {f.name: lines for f in files if (lines := nested(ast.parse(f.read_text(encoding='utf-8'))))}
