"The commands that README, documentation, results and scripts show can be typed as they stand."
import json
import re
import shlex

from simam_ema_fastai.cli import commands
from simam_ema_fastai.models.variants import get_variant

in_code = re.compile(r'^(?: {4}|[!$] ?)?(simam_ema .+)|`(simam_ema [^`]+)`', re.M)


def text_of(file):
    "What a file shows; of a notebook, its Markdown and its commands."
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.ipynb':
        cells = [(c['cell_type'], ''.join(c['source'])) for c in json.loads(text)['cells']]
        text = '\n'.join(source for kind, source in cells if kind == 'markdown' or source.startswith('!'))
    return re.sub(r'\\\n\s*', '', text)


def shown(root):
    "(file, command), without what is elided and what only names a command."
    files = [root/'README.md', *root.glob('results/**/*.md'), *root.glob('nbs/**/*.ipynb')]
    for file in sorted(files):
        for found in in_code.findall(text_of(file)):
            command = ''.join(found).split(' # ')[0].strip()
            if len(command.split()) > 2 and '…' not in command and not command.endswith('--help'):
                yield file.relative_to(root).as_posix(), command


def test_shown_commands_are_understood(root):
    seen, wrong = list(shown(root)), []
    assert len(seen) > 50
    for file, command in seen:
        _, name, *args = shlex.split(command)
        try:
            options = commands[name].parse(args)
            for v in (options.get('variants') or options.get('variant') or '').split(','):
                if v: get_variant(v, options.get('arch'))
        except Exception as e: wrong.append(f'{file}: {command}: {e!r}')
    assert not wrong, '\n'.join(wrong)
