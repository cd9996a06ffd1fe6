"""Build the documentation: nbdev and Sphinx read the notebooks: `python scripts/docs.py`, then open _docs/index.html.

Tutorials bring their outputs; with `--execute` the module notebooks are run to show theirs (minutes, later less).
Ends with status 1 and a list if a link leads nowhere."""
import inspect
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import nbformat
import pandas as pd
from fastcore.script import call_parse, store_true
from nbdev.config import get_config
from nbdev.showdoc import DocmentTbl
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import build_main

root = Path(__file__).resolve().parent.parent
cfg, site = get_config(root), root/'build'/'docs'
wings = ['core', 'runtime', 'attention', 'models', 'data', 'training', 'deploy', 'experiments', 'report', 'commands',
         '.']


def write(file: Path, *parts: str):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('\n\n'.join(parts), encoding='utf-8')


def folded(title: str, body: str) -> str: return f'<details><summary>{title}</summary>\n\n{body}\n\n</details>'


def heading(name: str, obj) -> str: return f"{'class' if inspect.isclass(obj) else 'def'} {name}"


def documented(name: str, obj, level: int) -> str:
    "What an exported class or function is: docstring, arguments, methods, source."
    title, table = '#'*level + ' ' + heading(f'`{name}`', obj), DocmentTbl(obj)
    parts = [title, inspect.cleandoc(obj.__doc__ or '')]
    if table.has_docment: parts.append(re.sub(r'^\|\s*\|', '| **Name** |', table._repr_markdown_().lstrip()))
    for n, member in vars(obj).items() if inspect.isclass(obj) else ():
        if inspect.isfunction(member) and member.__doc__ and n[0] != '_':
            parts.append(f'`.{n}{inspect.signature(member)}`\n: {inspect.getdoc(member)}')
    return '\n\n'.join([*parts, folded('Source', f'```python\n{inspect.getsource(obj)}```')])


class Page:
    "A notebook, which becomes a page of the site."
    def __init__(self, file: Path):
        self.nb, self.source = nbformat.read(file, as_version=4), file.relative_to(root).as_posix()
        code = '\n'.join(c.source for c in self.nb.cells if re.match(r'#\| (default_exp|export\n)', c.source))
        self.name = (re.findall(r'#\| default_exp ([\w.]+)', code) or [None])[0]
        path = re.sub(r'(?<=/)\d+_', '', self.source.removeprefix('nbs/').removesuffix('.ipynb'))
        self.url = (self.name or path).replace('.', '/') + '.ipynb'
        module = self.name and import_module(f'{cfg.lib_name}.{self.name}')
        defined = re.findall(r'(?m)^(?:async def |def |class )?(\w+)(?=[(:, =])', code)
        self.names = {n: getattr(module, n) for n in dict.fromkeys(defined) if n in getattr(module, '__all__', ())}
        self.documented = {n: o for n, o in self.names.items() if inspect.isclass(o) or inspect.isfunction(o)}
        self.links = {n: f"{self.url}#{heading(n, o).lower().replace(' ', '-')}" if n in self.documented else self.url
                      for n, o in self.names.items()}

    def write(self, links: dict):
        "The notebook with what is exported documented in the place of its code, and with links."
        cells, level = [], 2
        for cell in self.nb.cells:
            directive = (re.findall(r'^#\| ?(\w+)', cell.source) or [''])[0]
            if directive in ('export', 'exporti', 'hide', 'default_exp'): cell.metadata.tags = ['remove-cell']
            if directive == 'echo': cell.metadata.tags = ['remove-input']
            if directive == 'eval': cell.metadata.tags = ['skip-execution']
            if cell.cell_type == 'markdown':
                if re.search('(?m)^## ', cell.source): level = 3
                cell.source = linked(cell.source, links | self.links, self.url)
            cell.source = re.sub(r'\[!\[(Open in Colab)\]\(.*?\)\]', r'[\1]', cell.source)  # no image from elsewhere
            defined = re.findall(r'(?m)^(?:async )?(?:def |class )(\w+)', cell.source) if directive == 'export' else []
            cell.source = re.sub(r'(?m)^#\| .*\n', '', cell.source)
            docs = [documented(n, self.documented[n], level) for n in defined if n in self.documented]
            cells += [cell, *map(new_markdown_cell, docs)]
        self.nb.cells = cells
        write(site/self.url, nbformat.writes(self.nb))


def linked(text: str, links: dict, url: str) -> str:
    "`text` of the page at `url`, with links from names in backticks, to notebooks and to files of the repository."
    def target(m):
        at = f"{'../'*url.count('/')}{links[m[2]]}" if m[2] in links else f'{cfg.git_url}/blob/{cfg.branch}/{m[2]}'
        return f'[{m[1]}]({at})' if m[2] in links or (root/m[2]).is_file() else m[0]
    text = re.sub(r'(?<!!)\[([^\]\[]+)\]\(([\w./]+)\)', target, text)
    return re.sub(r'(?<![\[`\w])(`([\w./]+)(?:\(\))?`)(?![`\]\w])', target, text)


def write_results() -> list[str]:
    "A page for each folder of results/: its report, its tables and its files."
    shutil.copytree(root/'results', site/'results', ignore=shutil.ignore_patterns('*.html'))
    folders = sorted(p for p in (site/'results').iterdir() if p.is_dir())
    overview = site/'results'/'README.md'
    pages = [next(p for name in ('report.md', 'README.md') if (p := folder/name).exists()) for folder in folders]
    for page in pages:
        files = [f for f in sorted(page.parent.rglob('*')) if f.is_file() and f != page]
        for f in files:
            if f.suffix == '.md': write(f, '---\norphan: true\n---', f.read_text(encoding='utf-8'))
        tables = [folded(f.name, pd.read_csv(f).to_html(index=False, border=0)) for f in files if f.suffix == '.csv']
        listed = ', '.join(f'[{n}](./{n})' for n in (f.relative_to(page.parent).as_posix() for f in files))
        write(page, page.read_text(encoding='utf-8'), *tables, f'Files: {listed}')
    return [p.relative_to(site).as_posix() for p in (overview, *pages)]


def toctree(title: str, pages: list) -> str:
    urls = [getattr(p, 'url', p) for p in pages]
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {title}', '', *urls, '```'])


@call_parse
def main(
    execute: store_true = False,  # Run the module notebooks, to show their outputs
    out: Path = root/'_docs',  # The folder that is written anew
):
    "Build the documentation from the notebooks, README.md and results/."
    for old in (site, site.parent/'html', out): shutil.rmtree(old, ignore_errors=True)
    pages = {w: [Page(f) for f in sorted((root/'nbs'/w).glob('[!i]*.ipynb'))] for w in ['guide', 'tutorials', *wings]}
    readme = (root/'README.md').read_text(encoding='utf-8')
    named = {source: i for i, source in enumerate(re.findall(r'\((nbs/tutorials/.*?)\)', readme))}
    pages['tutorials'].sort(key=lambda p: named.get(p.source, len(named)))  # as the README has them
    every, results = [p for ps in pages.values() for p in ps], write_results()
    links = {n: at for p in every for n, at in p.links.items() if re.search('[A-Z_]', n)}  # plain words stay words
    links |= {n: p.url for p in every for n in (p.name, p.source)} | {r.rpartition('/')[0]: r for r in results}
    links['results/README.md'] = results[0]
    for p in every: p.write(links)
    names = sorted(f'- [`{n}`]({at}), {p.name}' for p in every for n, at in p.links.items())
    write(site/'names.md', '# Names\n', '\n'.join(names))
    trees = {'how to': pages.pop('guide'), 'tutorials': pages.pop('tutorials'), 'results': results, **pages,
             'index': ['names.md']}
    trees = [toctree({'.': 'command line'}.get(title, title), ps) for title, ps in trees.items()]
    write(site/'index.md', linked(readme, links, ''), *trees)
    options = ['-D', f"nb_execution_mode={'cache' if execute else 'off'}", '-q', '-W', '--keep-going']
    status = build_main([*options, '-c', str(root/'scripts'/'site'), str(site), str(site.parent/'html')])
    shutil.copytree(site.parent/'html', out)
    sys.exit(status)
