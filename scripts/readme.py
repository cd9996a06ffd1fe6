"Write README.md from nbs/index.ipynb, executed now: `python scripts/readme.py`, or with `--check` only compare."
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor
from traitlets.config import Config

root = Path(__file__).resolve().parent.parent


def readme() -> str:
    "The index notebook as Markdown; code cells that begin with `#| echo: false` show only what they print."
    nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
    ExecutePreprocessor(timeout=300).preprocess(nb, {'metadata': {'path': str(root/'nbs')}})
    for cell in nb.cells:
        if cell.source.startswith('#| echo: false'): cell.metadata.tags = ['echo-false']
    config = Config(TagRemovePreprocessor={'enabled': True, 'remove_input_tags': ['echo-false']})
    text, _ = MarkdownExporter(config=config).from_notebook_node(nb)
    note = '<!-- Made from nbs/index.ipynb by scripts/readme.py: edit there. -->'
    text = '\n'.join(line.rstrip() for line in text.strip().splitlines())
    return note + '\n\n' + re.sub(r'\n{3,}', '\n\n', text) + '\n'


if __name__ == '__main__':
    file, text = root/'README.md', readme()
    if '--check' not in sys.argv: file.write_text(text, encoding='utf-8')
    elif file.read_text(encoding='utf-8') != text:
        sys.exit('README.md is not what nbs/index.ipynb makes: run python scripts/readme.py')
