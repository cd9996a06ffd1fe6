"The documentation as a site: built as it is, without a network; a link that leads nowhere is found."
import re
import shutil
import subprocess
import sys

import pytest


def built(root, out):
    command = [sys.executable, '-W', 'ignore', root/'scripts'/'docs.py', '--out', out]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope='module')
def site(root, tmp_path_factory):
    out = tmp_path_factory.mktemp('docs')/'site'
    r = built(root, out)
    assert r.returncode == 0, r.stdout + r.stderr
    return out


def test_a_page_for_every_notebook_and_result(site, root):
    titles = {f.stem.strip('_') for f in site.rglob('*.html')}
    assert {f.stem.lstrip('0123456789_') for f in (root/'nbs').rglob('[!.]*.ipynb')} <= titles
    text = ''.join(f.read_text(encoding='utf-8') for f in site.glob('results/*/*.html'))
    files = [f for f in (root/'results').rglob('*') if f.is_file() and f.suffix not in ('.html', '.md')]
    assert not [f for f in files if f'/{f.name}"' not in text]
    assert not [f for f in site.rglob('*.html') if re.search('<img[^>]*src="http', f.read_text(encoding='utf-8'))]


def test_exported_names_are_documented(site):
    text = (site/'attention'/'modules.html').read_text(encoding='utf-8')
    for part in ('id="class-simam"', 'added to the variance', 'Yang et al.', 'ICML 2021', '<math'): assert part in text
    assert '#| ' not in text and 'from fastcore.test' not in text


def test_search_works_offline_and_pages_are_accessible(site, look):
    assert look('docs.mjs', site/'attention'/'modules.html') == []


def test_a_link_that_leads_nowhere_is_found(root, tmp_path):
    "In a site of the wing `core` alone, which takes seconds."
    for part in ('nbs/core', 'scripts', 'simam_ema_fastai'): shutil.copytree(root/part, tmp_path/part)
    (tmp_path/'results').mkdir()
    for file in ('settings.ini', 'pyproject.toml', 'results/README.md'): shutil.copy(root/file, tmp_path/file)
    (tmp_path/'README.md').write_text('# Here\n\n[a](core/errors.ipynb#nothing) [b](none.md) [c](core/errors.ipynb)\n',
                                      encoding='utf-8')
    r = built(tmp_path, tmp_path/'site')
    assert r.returncode == 1, r.stderr
    said = [line for line in r.stderr.splitlines() if 'index.md' in line]
    assert len(said) == 2 and "'nothing'" in said[0] + said[1] and "'none.md'" in said[0] + said[1], said
