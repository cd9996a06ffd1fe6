"The report in a browser: widths, colour schemes, sorting, accessibility."
import json
import os
import re
import shutil
import subprocess

import pytest

from simam_ema_fastai.core import cache_dir

packages = ['puppeteer-core@24.43.1', 'axe-core@4.14.1']


@pytest.fixture(scope='session')
def browser():
    "Chromium's path, and a node_modules with what drives it and what judges the page."
    chromium = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
    if chromium is None: pytest.skip('no Chromium on this machine')
    if shutil.which('npm') is None: pytest.skip('no npm on this machine')
    folder = cache_dir()/'page_check'
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder/'node_modules'/p.split('@')[0]).is_dir() for p in packages):
        r = subprocess.run(['npm', 'install', '--prefix', folder, '--no-audit', '--no-fund', *packages], capture_output=True, text=True)
        if r.returncode: pytest.skip(f'npm cannot install {packages}: {r.stderr.strip()[-200:]}')
    return chromium, folder/'node_modules'


@pytest.fixture(scope='session')
def page(simam_ema, digits_args, tmp_path_factory):
    out = tmp_path_factory.mktemp('page')/'runs'
    status, _, err = simam_ema('ablate', '--variants', 'baseline,hybrid', '--strategies', 'uniform,discriminative+freeze', '--out', out, *digits_args, '--epochs', 2)
    assert status == 0, err
    return out/'report'/'report.html'


def look(page, browser, root, *shots):
    chromium, modules = browser
    r = subprocess.run(['node', root/'tests'/'page.mjs', page, chromium, modules, *shots], capture_output=True, text=True, timeout=180)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout.splitlines()[-1])


def test_page_in_a_browser(page, browser, root):
    assert look(page, browser, root) == []


def test_the_check_finds_what_is_wrong(page, browser, root, tmp_path):
    "A picture without words, a wide element, an error and a request are each noticed."
    bad = tmp_path/'bad.html'
    bad.write_text(re.sub('</main>', '<img src="http://127.0.0.1:9/x.png"><div style="width:2000px">wide</div><script>nowhere()</script></main>', page.read_text(encoding='utf-8')), encoding='utf-8')
    found = '\n'.join(look(bad, browser, root))
    for what in ('axe image-alt', 'pixels wide', 'nowhere is not defined', 'fetches http://127.0.0.1'): assert what in found, found


def test_the_live_page_follows_a_training(simam_ema, browser, root, digits_args, tmp_path):
    "From nothing to the finished comparison without being loaded again; it says when the training is over."
    chromium, modules = browser
    training = simam_ema.start('ablate', '--variants', 'baseline,hybrid', '--out', tmp_path/'runs', *digits_args, '--epochs', 12, '--watch', '--port', 0)
    try:
        url = training.stdout.readline().removeprefix('watch: ').strip()
        r = subprocess.run(['node', root/'tests'/'live.mjs', url, chromium, modules, *os.environ.get('SHOTS', '').split()], capture_output=True, text=True, timeout=300)
    finally: out, _ = training.communicate(timeout=60)
    assert r.returncode == training.returncode == 0, r.stderr
    assert 'left for the grid' in out
    seen = json.loads(r.stdout)
    assert seen['wrong'] == [] and seen['notReloaded'] and seen['wide'] == 1440
    assert any('left.' in s for s in seen['status']) and 'has ended' in seen['status'][-1]
    assert {'Still to be done', 'Learning curves', 'All variants'} <= set(seen['headings'])
