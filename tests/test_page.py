"The report in a browser: widths, color schemes, sorting, accessibility."
import os
import re

import pytest


@pytest.fixture(scope='session')
def page(simam_ema, digits_args, tmp_path_factory):
    out = tmp_path_factory.mktemp('page')/'runs'
    compared = ['--variants', 'baseline,hybrid', '--strategies', 'uniform,discriminative+freeze']
    status, _, err = simam_ema('ablate', *compared, '--out', out, *digits_args, '--epochs', 2)
    assert status == 0, err
    return out/'report'/'report.html'


def test_page_in_a_browser(page, look):
    assert look('page.mjs', page) == []


def test_the_check_finds_what_is_wrong(page, look, tmp_path):
    "An image without words, a wide element, an error and a request are each noticed."
    bad = tmp_path/'bad.html'
    broken = '<img src="http://127.0.0.1:9/x.png"><div style="width:2000px">wide</div><script>nowhere()</script>'
    bad.write_text(re.sub('</main>', f'{broken}</main>', page.read_text(encoding='utf-8')), encoding='utf-8')
    found = '\n'.join(look('page.mjs', bad))
    for what in ('axe image-alt', 'pixels wide', 'nowhere is not defined', 'fetches http://127.0.0.1'):
        assert what in found, found


def test_the_live_page_follows_a_training(simam_ema, look, digits_args, tmp_path):
    "From nothing to the finished comparison without being loaded again; it says when the training is over."
    watched = ['--variants', 'baseline,hybrid', '--epochs', 12, '--watch', '--port', 0]
    training = simam_ema.start('ablate', '--out', tmp_path/'runs', *digits_args, *watched)
    try:
        url = training.stdout.readline().removeprefix('watch: ').strip()
        seen = look('live.mjs', url, *os.environ.get('SHOTS', '').split())
    finally: out, _ = training.communicate(timeout=60)
    assert training.returncode == 0
    assert 'left for the grid' in out
    assert seen['wrong'] == [] and seen['notReloaded'] and seen['wide'] == 1440
    assert any('left.' in s for s in seen['status']) and 'has ended' in seen['status'][-1]
    assert {'Still to be done', 'Learning curves', 'All variants'} <= set(seen['headings'])
