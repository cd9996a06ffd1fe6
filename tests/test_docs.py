"The documentation as a site: built as it is, every link followed; and what is broken is found."
import shutil
import subprocess
import sys

import pytest


@pytest.fixture(scope='module')
def site(root, tmp_path_factory):
    out = tmp_path_factory.mktemp('docs')/'site'
    r = subprocess.run([sys.executable, root/'scripts'/'docs.py', '--out', out], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    return out


@pytest.fixture(scope='module')
def docs(root):
    sys.path.insert(0, str(root/'scripts'))
    try: import docs
    finally: sys.path.pop(0)
    return docs


def test_a_page_for_every_notebook(site, root):
    titles = {f.stem.strip('_') for f in site.rglob('*.html')}
    for notebook in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in notebook.parts: assert notebook.stem.lstrip('0123456789_') in titles


def test_pages_need_no_network(site, docs):
    "Style and pictures are files of the site, and formulas are MathML: nothing is fetched and no script runs."
    for file in site.rglob('*.html'):
        text = file.read_text(encoding='utf-8')
        assert '<script' not in text and 'src="http' not in text
    assert '@import' not in (site/'style.css').read_text(encoding='utf-8')
    assert '<math' in (site/'attention.html').read_text(encoding='utf-8')


def test_exported_names_are_documented(site):
    text = (site/'attention.html').read_text(encoding='utf-8')
    for part in ('id="SimAM"', 'added to the variance', 'Yang et al., ICML 2021'): assert part in text
    assert '#| ' not in text and 'from fastcore.test' not in text


def test_results_are_all_there(site, root):
    text = (site/'results.html').read_text(encoding='utf-8')
    for file in (f for f in (root/'results').rglob('*') if f.is_file() and f.suffix != '.html'):
        assert f'href="{file.relative_to(root).as_posix()}"' in text and (site/file.relative_to(root)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize('bad, told', [
    ('<a href="nowhere.html">x</a>', 'leads nowhere: nowhere.html'), ('<a href="core.files.html#nothing">x</a>', 'no such anchor: core.files.html#nothing'),
    ('<a href="#nothing">x</a>', 'no such anchor: #nothing'), ('<img src="style.css">', 'picture without words: style.css'), ('<p id="content">x</p>', 'id twice: content'),
    ('<a href="https://git hub/x">x</a>', 'malformed: https://git hub/x'), ('<a href="{repository}nbs/99_none.ipynb">x</a>', 'not in the repository')])
def test_what_is_broken_is_found(site, docs, tmp_path, bad, told):
    copy = shutil.copytree(site, tmp_path/'site')
    assert docs.broken(copy) == []
    page = copy/'index.html'
    page.write_text(page.read_text(encoding='utf-8').replace('</main>', bad.format(repository=docs.repository) + '</main>'), encoding='utf-8')
    (wrong,) = docs.broken(copy)
    assert wrong.startswith('index.html: ') and told in wrong
