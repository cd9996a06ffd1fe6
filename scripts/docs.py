"""Build the documentation from README.md, the notebooks and results/ as a static site: `python scripts/docs.py`, then open _docs/index.html.

Nothing is imported from the package and nothing fetched. With `--execute` notebooks are run and their pictures and tables shown; what was run once
is kept in build/docs until the notebook, a module it uses or results/ changes. Ends with status 1 and a list if a link leads nowhere."""
import argparse
import ast
import base64
import hashlib
import html
import io
import json
import os
import re
import shutil
import sys
import tokenize
from configparser import ConfigParser
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, normpath, relpath
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert as mathml
from nbconvert.filters import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CellExecutionError, ExecutePreprocessor
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

root = Path(__file__).resolve().parent.parent
config = ConfigParser()
config.read(root/'settings.ini')
config = config['DEFAULT']
package = config['lib_name']
repository = f"{config['git_url']}/blob/{config['branch']}/"
long_code = 14  # lines from which the code of a module's example is folded
plain = lambda s: re.sub(r'<[^>]+>', '', s)
fold = lambda summary, body: f'<details><summary>{summary}</summary>{body}</details>\n'


# Notebooks ------------------------------------------------------------------------------------------------------------

@dataclass
class Page:
    "A notebook, or a page made of Markdown: where it stands in the site and what it shows."
    source: str  # path in the repository, from its root
    url: str  # path in the site
    title: str
    lead: str
    nb: object = None
    module: str = None
    defined: dict = field(default_factory=dict)  # exported name -> first line of its docstring
    toc: list = field(default_factory=list)  # (level, id, text)
    body: str = ''

    @classmethod
    def read(cls, file: Path):
        "The page of a notebook."
        nb = nbformat.read(file, as_version=4)
        title, lead = re.match(r'# (.+)\n+> (.+)', nb.cells[0].source).groups()
        module = next((m[1] for c in nb.cells if (m := re.match(r'#\| default_exp ([\w.]+)', c.source))), None)
        at = file.relative_to(root/'nbs')
        url = f'{module}.html' if module else at.with_suffix('.html').as_posix()
        page = cls(file.relative_to(root).as_posix(), url, title, lead, nb, module)
        for cell in nb.cells:
            if is_export(cell): page.defined |= {name: (ast.get_docstring(node) or '').split('\n')[0] if hasattr(node, 'body') else '' for name, node in public(ast.parse(cell.source))}
        return page

    @cached_property
    def imports(self) -> dict:
        "What this notebook imports from the package: name -> module; a module itself is its own name."
        code = '\n'.join(c.source for c in self.nb.cells if c.cell_type == 'code')
        found = re.findall(rf'(?m)^ *from {package}(?:\.([\w.]+))? import ([\w, *]+)', code)
        return {name.strip(): module or name.strip() for module, names in found for name in names.split(',')}


def is_export(cell): return cell.cell_type == 'code' and cell.source.startswith('#| export')


def public(tree):
    "The public names a piece of code defines, with the node that defines each."
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)): names = [t.id for t in getattr(node, 'targets', [getattr(node, 'target', None)]) if isinstance(t, ast.Name)]
        else: names = []
        yield from ((n, node) for n in names if not n.startswith('_'))


class Execute(ExecutePreprocessor):
    def preprocess_cell(self, cell, resources, index): return (cell, resources) if '#| eval: false' in cell.source else super().preprocess_cell(cell, resources, index)


def execute(page: Page, pages: dict, run: bool):
    "The notebook with its outputs: from build/docs if nothing it rests on has changed, else executed if `run`, else without."
    seen, todo = set(), [page]
    while todo:
        p = todo.pop()
        if p.source in seen: continue
        seen.add(p.source)
        todo += [pages[m] for m in p.imports.values() if m in pages]
    parts = [c.source for p in sorted(pages.values(), key=lambda p: p.source) if p.source in seen or p is page for c in p.nb.cells if p is page or is_export(c)]
    parts += [c.source for c in page.nb.cells]
    if any("'results'" in c.source for c in page.nb.cells): parts += [f.read_text(encoding='utf-8') for f in sorted((root/'results').rglob('*.csv'))]
    kept = root/'build'/'docs'/f'{Path(page.url).stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.ipynb'
    if kept.exists(): return nbformat.read(kept, as_version=4)
    if not run: return page.nb
    print(f'executing {page.source}', flush=True)
    nb = nbformat.from_dict(page.nb)
    os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'  # pictures in the notebook, whatever the shell prefers
    os.environ['PYTHONWARNINGS'] = 'ignore:IProgress not found'  # tqdm misses widgets
    try: Execute(timeout=1800).preprocess(nb, {'metadata': {'path': str((root/page.source).parent)}})
    except CellExecutionError as e: sys.exit(f'{page.source} fails, so there is nothing to show: {e.ename}: {e.evalue}')
    kept.parent.mkdir(parents=True, exist_ok=True)
    for old in kept.parent.glob(f'{Path(page.url).stem}-*.ipynb'): old.unlink()
    nbformat.write(nb, kept)
    return nb


# Text -----------------------------------------------------------------------------------------------------------------

def python(source: str) -> str: return highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()


def code(source: str) -> str:
    source = source.strip('\n')
    focus = ' tabindex="0"' if max(map(len, source.split('\n'))) > 90 else ''  # what scrolls must be reachable by keyboard
    return f'<pre{focus}><code>{python(source)}</code></pre>\n'


def wrapped(text: str) -> str:
    "Text as it is typed or printed, in lines as long as there is room; an option is not broken at its hyphens."
    return '<pre class="wrap"><code>' + re.sub(r'(?<!\S)--?[\w-]+', r'<span>\g<0></span>', html.escape(strip_ansi(text).strip('\n'), quote=False)) + '</code></pre>\n'


def table(inner: str, label: str) -> str: return f'<div class="table" role="region" aria-label="{html.escape(plain(label))}" tabindex="0"><table>{inner}</table></div>\n'


def picture(src: str, alt: str, file: Path) -> str:
    "A picture as wide as it would be printed, which for a plot is 150 dots per inch."
    width = f' width="{int.from_bytes(file.read_bytes()[16:20], "big")*96//150}"' if file.suffix == '.png' and file.is_file() else ''
    return f'<img src="{html.escape(src)}" alt="{html.escape(alt)}"{width} loading="lazy">'


class Renderer(IPythonRenderer):
    "Markdown to HTML: formulas as MathML, links and names in backticks to their pages."
    def __init__(self, site, page, source=None, shift=0, own=()):
        super().__init__(escape=False)
        self.site, self.page, self.source, self.shift, self.own = site, page, source or page.source, shift, own
        self.section = page.title

    def heading(self, text, level, **attrs):
        level, slug = level + self.shift, re.sub(r'\W+', '-', html.unescape(plain(text)).lower()).strip('-')
        taken = {i for _, i, _ in self.page.toc} | set(self.page.defined)
        id = next(i for i in (slug, f'{slug}-section', *(f'{slug}-{n}' for n in range(2, 99))) if i not in taken)
        self.page.toc.append((level, id, plain(text)))
        self.section = text
        return f'<h{level} id="{id}">{text}</h{level}>\n'

    def block_math(self, body): return f'<div class="math" tabindex="0" role="group" aria-label="Formula">{mathml(body.strip(), display="block")}</div>'
    def inline_math(self, body): return f'<span class="math" tabindex="0" role="group" aria-label="Formula">{mathml(body)}</span>' if len(body) > 60 else mathml(body)
    def block_code(self, text, info=None): return code(text) if info == 'python' else wrapped(text)
    def table(self, text): return table(text, f'Table: {self.section}')
    def codespan(self, text): return self.site.named(html.unescape(text), f'<code>{html.escape(html.unescape(text), quote=False)}</code>', self.page, self.own)
    def link(self, text, url, title=None): return f'<a href="{html.escape(self.site.resolve(url, self.source, self.page))}">{re.sub("</?a[^>]*>", "", text)}</a>'
    def image(self, text, url, title=None): return picture(self.site.resolve(url, self.source, self.page), plain(text), root/dirname(self.source)/url)


# What is exported -----------------------------------------------------------------------------------------------------

def docments(node, source: str) -> list:
    "(name, type, default, meaning) of each parameter of a function or field of a dataclass, and of what is returned; comments of their lines are their meaning."
    comments = {t.start[0]: t.string.lstrip('# ') for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    text = lambda n: ast.unparse(n) if n is not None else ''
    if isinstance(node, ast.ClassDef):
        return [(f.target.id, text(f.annotation), text(f.value), comments.get(f.end_lineno, '')) for f in node.body if isinstance(f, ast.AnnAssign)]
    a, rows = node.args, []
    positional = a.posonlyargs + a.args
    defaults = [None]*(len(positional) - len(a.defaults)) + a.defaults
    stars = [(x, s, None) for x, s in ((a.vararg, '*'), (a.kwarg, '**')) if x]
    for arg, prefix, default in [*((x, '', d) for x, d in zip(positional, defaults)), *stars[:1 if a.vararg else 0], *((x, '', d) for x, d in zip(a.kwonlyargs, a.kw_defaults)), *stars[1 if a.vararg else 0:]]:
        if arg.arg not in ('self', 'cls'): rows.append((prefix + arg.arg, text(arg.annotation), text(default), comments.get((default or arg).end_lineno, comments.get(arg.lineno, ''))))
    if node.returns and (meaning := comments.get(node.returns.end_lineno)): rows.append(('returns', text(node.returns), '', meaning))
    return rows


def signature(name: str, rows: list, returns: str) -> str:
    args = [f'{n}={d}' if d else n for n, _, d, _ in rows if n != 'returns']
    return f"{name}({', '.join(args)}){returns}"


def symbol(node, source: str, render: Renderer, level: int) -> str:
    "Heading, signature, docstring and parameters of an exported function or class, and the public methods of a class that has documented any."
    methods = {f.name: f for f in node.body if isinstance(f, ast.FunctionDef)} if isinstance(node, ast.ClassDef) else {}
    doc_of = lambda n: ast.get_docstring(n) or ''
    init = methods.get('__init__', node)
    rows = docments(init, source)
    render.own = {n.strip('*') for n, *_ in rows} | {node.name}
    markdown = MarkdownWithMath(renderer=render).render
    inline = lambda s: re.sub(r'^<p>|</p>\s*$', '', markdown(s).strip())
    returns = f' -> {ast.unparse(node.returns)}' if getattr(node, 'returns', None) else ''
    render.page.toc.append((level, node.name, node.name))
    kind = 'class ' if isinstance(node, ast.ClassDef) else ''
    out = [f'<div class="symbol"><h{level} id="{node.name}">{node.name}</h{level}>', f'<pre class="signature"><code>{python(kind + signature(node.name, rows, returns))}</code></pre>', markdown(doc_of(node))]
    if any(m for *_, m in rows):
        columns = [('', 0), ('type', 1), ('default', 2), ('meaning', 3)]
        shown = [(c, i) for c, i in columns if any(r[i] for r in rows)]
        cell = lambda r, i: f'<th scope="row"><code>{r[0]}</code></th>' if i == 0 else f'<td>{inline(r[i])}</td>' if i == 3 else f'<td class="code">{html.escape(r[i])}</td>'
        head = ''.join(f'<th scope="col">{c}</th>' if c else '<td></td>' for c, _ in shown)
        out.append(table(f"<thead><tr>{head}</tr></thead><tbody>{''.join('<tr>' + ''.join(cell(r, i) for _, i in shown) + '</tr>' for r in rows)}</tbody>", f'Parameters of {kind}{node.name}'))
    told = {n: f for n, f in methods.items() if not n.startswith('_') and doc_of(f)}
    if told:
        call = lambda n, f: signature(n, docments(f, source), f' -> {ast.unparse(f.returns)}' if f.returns else '')
        out.append('<dl>' + ''.join(f'<dt><code>.{html.escape(call(n, f))}</code></dt><dd>{markdown(doc_of(f))}</dd>' for n, f in told.items()) + '</dl>')
    render.own = ()
    return '\n'.join(out) + fold('Source', code(source)) + '</div>\n'


# The site -------------------------------------------------------------------------------------------------------------

class Site:
    def __init__(self, out: Path, run: list = None):  # run: None for no notebook, [] for all, or names of pages
        self.out, self.run = out, run
        modules = [Page.read(f) for f in sorted(f for f in (root/'nbs').rglob('[0-9]*.ipynb') if '.ipynb_checkpoints' not in f.parts)]
        tutorials = [Page.read(f) for f in sorted((root/'nbs'/'tutorials').glob('*.ipynb'))]
        readme = (root/'README.md').read_text(encoding='utf-8')
        home = Page('README.md', 'index.html', *re.search(r'# (.+)\n+> (.+)', readme).groups(), body=readme)
        results = Page('results', 'results.html', 'Results', 'What was run on real data, on which machine, with which command: everything that `results/` holds.')
        names = Page('', 'names.html', 'Names', 'Every exported name, where it is defined and what it is.')
        self.sections = {'Start': [home, results], 'Tutorials': tutorials, 'Modules, from the ground up': modules, 'Index': [names]}
        self.pages = [p for pages in self.sections.values() for p in pages]
        self.modules = {p.module: p for p in modules}
        self.pictures = 0

    def named(self, name: str, shown: str, page: Page, own=()) -> str:
        "What `name` in backticks stands for, as a link, if the site or the repository has it."
        base, _, last = name.removeprefix(f'{package}.').rstrip('()').rpartition('.')
        at = None
        if name in own: return shown
        if name in page.defined: at = f'#{name}'
        elif base in self.modules and last in self.modules[base].defined: at = f'{base}.html#{last}'
        elif name in self.modules and page.module: at = f'{name}.html'
        elif '/' in name and (root/name).exists() and not name.startswith('/'): at = self.resolve(name, 'README.md')
        elif found := [p.url for p in self.pages if name == Path(p.source).stem != p.module and p.nb]: at = found[0]
        elif page.nb and (module := page.imports.get(name)) and name in self.modules[module].defined: at = f'{module}.html#{name}'
        elif re.search('[A-Z_(]', name) and (found := [p for p in self.modules.values() if last in p.defined and not base]): at = f'{found[0].url}#{last}'  # a plain word may mean something else
        return f'<a href="{html.escape(self.relative(at, page))}">{shown}</a>' if at else shown

    def resolve(self, url: str, source: str, page: Page = None) -> str:
        "A link in `source` (a path in the repository) as a link in the site, or to the repository for what the site leaves out."
        if urlsplit(url).scheme or url.startswith('#'): return url
        path, _, anchor = url.partition('#')
        target = normpath(f'{dirname(source)}/{path}').lstrip('/')
        result = re.match(r'results/([^/]+)$', target)
        found = next((p.url for p in self.pages if p.source == target), None)
        if result: at = f'results.html#{result[1]}'
        elif found: at = found + ('#' + anchor if anchor else '')
        elif (root/target).exists() and not target.startswith('results/'): at = repository + target
        else: at = target
        return self.relative(at, page) if page else at

    def relative(self, at: str, page: Page) -> str:
        "`at`, a path from the site's root, as seen from `page`."
        return at if urlsplit(at).scheme or at.startswith('#') else relpath(at, dirname(page.url) or '.')

    def output(self, o, page: Page, about: str) -> str:
        "One output of a cell; warnings and the names of objects are left out."
        if o.output_type == 'stream': return wrapped(o.text) if o.name == 'stdout' and o.text.strip() else ''
        data = o.get('data', {})
        if 'image/png' in data:
            self.pictures += 1
            file = self.out/'pictures'/f'{Path(page.url).stem}-{self.pictures}.png'
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(base64.b64decode(data['image/png']))
            return f'<figure><img src="{self.relative(file.relative_to(self.out).as_posix(), page)}" alt="{html.escape(about)}" loading="lazy"></figure>\n'
        if 'text/html' in data:
            inner = re.sub(r'(?s)<style.*?</style>|<progress.*?</progress>|(?<=<t[hrd]) style="[^"]*"| border="1"', '', data['text/html'])
            tables = re.findall(r'(?s)<table[^>]*>(.*?)</table>', inner)
            return ''.join(table(t.replace('<th></th>', '<td></td>'), f'Output: {about}') for t in tables)
        if 'text/markdown' in data: return MarkdownWithMath(renderer=Renderer(self, page, shift=1)).render(data['text/markdown'])
        text = data.get('text/plain', '')
        return wrapped(text) if text and not re.match(r'<(Figure|Axes|matplotlib)|\[?<matplotlib|Text\(', text) else ''

    def notebook(self, page: Page) -> str:
        "A notebook as HTML."
        render = Renderer(self, page)
        markdown = MarkdownWithMath(renderer=render).render
        out, about = [], page.title
        for n, cell in enumerate(execute(page, self.modules, self.run is not None and (not self.run or Path(page.url).stem in self.run)).cells):
            text = cell.source
            if n == 0: text = re.sub(r'# .+\n+> .+\n*', '', text, count=1)
            if cell.cell_type == 'markdown':
                out.append(markdown(text))
                if prose := [p for p in text.split('\n\n') if not re.match(r'#|\||```|\$\$', p)]: about = plain(markdown(prose[-1])).strip()
            elif re.match(r'#\| (hide|default_exp)', text) or cell.cell_type == 'raw': continue
            elif is_export(cell): out.append(self.exported(text.partition('\n')[2], render))
            else:
                alt = re.search(r'#\| fig-alt: *(.+)\n', text)
                shown = re.sub(r'(?m)^#\|.*\n', '', text)
                lines = shown.strip().split('\n')
                folded = page.module and len(lines) > long_code
                if not text.startswith('#| echo: false'): out.append(fold(f'Example, {len(lines)} lines', code(shown)) if folded else code(shown))
                shown = ''.join(self.output(o, page, alt[1] if alt else about) for o in cell.get('outputs', []))
                if shown: out.append(f'<div class="output">{shown}</div>\n')
        return ''.join(out)

    def exported(self, source: str, render: Renderer) -> str:
        "The documentation of what a cell exports, with the code folded; tables of constants are shown as they are."
        tree, out, rest = ast.parse(source), [], []
        level = 3 if any(lv == 2 for lv, *_ in render.page.toc) else 2
        lines = source.split('\n')
        for node, after in zip(tree.body, [*tree.body[1:], None]):
            first = min([node.lineno, *(d.lineno for d in getattr(node, 'decorator_list', []))])
            last = min([after.lineno, *(d.lineno for d in getattr(after, 'decorator_list', []))]) - 1 if after else len(lines)
            part = '\n'.join(lines[first - 1:last]).rstrip()
            names = [n for n, _ in public(ast.Module([node], []))]
            if names and isinstance(node, (ast.FunctionDef, ast.ClassDef)): out.append(symbol(ast.parse(part).body[0], part, render, level))
            elif names:
                for n in names: render.page.toc.append((3, n, n))
                out.append(''.join(f'<span id="{n}"></span>' for n in names) + code(part))
            elif not isinstance(node, (ast.Import, ast.ImportFrom)): rest.append(part)
        if rest: out.append(fold('Code behind it', code('\n'.join(rest))))
        return '\n'.join(out)

    def results(self, page: Page) -> str:
        "A section for each folder of results/: its report, its tables and files as they are."
        out = []
        for folder in sorted(f for f in (root/'results').iterdir() if f.is_dir()):
            shutil.copytree(folder, self.out/'results'/folder.name, ignore=shutil.ignore_patterns('*.html', '.*'))
            files = sorted(f for f in folder.rglob('*') if f.is_file() and f.suffix != '.html' and not f.name.startswith('.'))
            path = lambda f: f.relative_to(root).as_posix()
            report = folder/'report.md'
            text = report.read_text(encoding='utf-8') if report.exists() else f'# {folder.name}\n'
            title, text = re.match(r'# (.+)\n([\s\S]*)', text).groups()
            page.toc.append((2, folder.name, title))
            out.append(f'<section aria-labelledby="{folder.name}"><h2 id="{folder.name}">{html.escape(title)}</h2>')
            render = Renderer(self, page, path(report), shift=1)
            render.section = title
            out.append(MarkdownWithMath(renderer=render).render(text))
            for f in files:
                if f.name == 'environment.json':
                    found = json.loads(f.read_text(encoding='utf-8'))
                    for e in found if isinstance(found, list) else [found]:
                        packages = ', '.join(f'{k} {v}' for k, v in e['packages'].items())
                        out.append(f"<p>Machine: {html.escape(e['gpu'] or e['cpu'])}, {e['cores']} cores; {html.escape(packages)}; commit {(e['commit'] or 'unknown')[:12]}</p>" + wrapped(e['command']))
                elif f.suffix in ('.png', '.svg') and f'({f.relative_to(folder).as_posix()})' not in text: out.append(f"<figure>{picture(path(f), f'{title}: {f.stem}'.replace('_', ' '), f)}</figure>")
                elif f.suffix == '.csv':
                    df = pd.read_csv(f, dtype=str, keep_default_na=False)
                    out.append(fold(f'<code>{f.name}</code>, {len(df)} rows', table(df.to_html(index=False, border=0).partition('>')[2].rpartition('<')[0], f'{f.name} of {title}')))
            out.append('<p>Files: ' + ', '.join(f'<a href="{path(f)}">{f.relative_to(folder).as_posix()}</a>' for f in files) + '</p></section>')
        return '\n'.join(out)

    def names(self, page: Page) -> str:
        "The alphabetical list of everything exported."
        markdown = MarkdownWithMath(renderer=Renderer(self, page)).render
        every = sorted(((n, p, d) for p in self.modules.values() for n, d in p.defined.items()), key=lambda t: t[0].lower())
        rows = ''.join(f'<tr><th scope="row"><a href="{p.url}#{n}"><code>{n}</code></a></th><td><code>{p.module}</code></td><td>{re.sub("</?p>", "", markdown(d)).strip()}</td></tr>' for n, p, d in every)
        return table(f'<thead><tr><th scope="col">name</th><th scope="col">module</th><th scope="col">what it is</th></tr></thead><tbody>{rows}</tbody>', 'Names')

    def build(self):
        "Write every page."
        if self.out.exists(): shutil.rmtree(self.out)
        self.out.mkdir(parents=True)
        template = Environment(loader=FileSystemLoader(root/'scripts'/'site'), autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template('page.html')
        shutil.copy(root/'scripts'/'site'/'style.css', self.out)
        for i, page in enumerate(self.pages):
            markdown = MarkdownWithMath(renderer=Renderer(self, page)).render
            if page.nb: body = self.notebook(page)
            elif page.url == 'results.html': body = self.results(page)
            elif page.url == 'names.html': body = self.names(page)
            else: body = markdown(re.sub(r'(?s)^.*?\n> .+?\n', '', page.body, count=1))
            lead = re.sub('</?p>', '', markdown(page.lead)).strip()
            around = [self.pages[j] if 0 <= j < len(self.pages) else None for j in (i - 1, i + 1)]
            text = template.render(site=self, config=config, page=page, body=body, lead=lead, around=around, plain=plain, href=lambda at: self.relative(at, page), repository=repository)
            file = self.out/page.url
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding='utf-8')


# Links ----------------------------------------------------------------------------------------------------------------

class Links(HTMLParser):
    "The ids, links and pictures of a page."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.append(a['id'])
        for k in ('href', 'src'):
            if k in a: self.links.append(a[k] or '')
        if tag == 'img' and not a.get('alt'): self.wrong.append(f"picture without words: {a.get('src')}")


def broken(site: Path) -> list:
    "What is wrong with the links of a site: targets and anchors that do not exist, ids that occur twice, pictures without words, malformed addresses."
    pages = {f.relative_to(site).as_posix(): Links(f.read_text(encoding='utf-8')) for f in sorted(site.rglob('*.html'))}
    wrong = []
    for name, page in pages.items():
        say = lambda text: wrong.append(f'{name}: {text}')
        for w in page.wrong: say(w)
        for i in sorted({i for i in page.ids if page.ids.count(i) > 1}): say(f'id twice: {i}')
        for link in page.links:
            url = urlsplit(link)
            if link.startswith(repository):
                if not (root/link.removeprefix(repository).partition('#')[0]).exists(): say(f'not in the repository: {link}')
            elif url.scheme:
                if url.scheme not in ('http', 'https') or not re.fullmatch(r'[\w-]+(\.[\w-]+)+(:\d+)?', url.netloc) or re.search(r'\s', link): say(f'malformed: {link}')
            else:
                target = normpath(f'{dirname(name)}/{unquote(url.path)}').lstrip('/') if url.path else name
                if target not in pages and not (site/target).is_file(): say(f'leads nowhere: {link}')
                elif url.fragment and unquote(url.fragment) not in pages[target].ids: say(f'no such anchor: {link}')
    return wrong


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--execute', nargs='*', metavar='PAGE', help='run the notebooks that changed, or of those only the pages named (attention, solar_cells …), and show their outputs (minutes)')
    parser.add_argument('--out', type=Path, default=root/'_docs', help='the folder that is written anew')
    args = parser.parse_args()
    site = Site(args.out, args.execute)
    if unknown := set(args.execute or ()) - {Path(p.url).stem for p in site.pages}: parser.error(f"no page {', '.join(sorted(unknown))}")
    site.build()
    if wrong := broken(args.out): sys.exit('\n'.join(wrong))
    print(f"{len(site.pages)} pages, every link leads somewhere: {args.out/'index.html'}")
