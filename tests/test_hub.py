"Models on the Hugging Face Hub, by its own client against a server that stands in for it."
import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.data.datasets import load_samples
from simam_ema_fastai.deploy.load import load_exported
from simam_ema_fastai.deploy.predict import predict_images
from simam_ema_fastai.runtime.classifier import open_model

pytest.importorskip('huggingface_hub')
token = 'hf_a_token_that_may_write'


class Hub(BaseHTTPRequestHandler):
    "What the client asks for when it makes a repository, commits files, and takes a snapshot."
    repos, asked, private = {}, [], []

    def log_message(self, *_): pass

    def reply(self, status, content=None, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for k, v in {'Content-Length': len(body), **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def may(self):
        given = self.headers.get('Authorization', '')
        if given == f'Bearer {token}': return True
        self.reply(403 if given == 'Bearer hf_read_only' else 401, dict(error='not with this token'))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.asked.append(self.path)
        if self.path == '/api/validate-yaml': return self.reply(200, dict(errors=[], warnings=[]))
        if not self.may(): return
        if self.path == '/api/repos/create':
            o = json.loads(body)
            name = f"{o.get('organization') or 'me'}/{o['name']}"
            if o.get('private') or o.get('visibility') == 'private': self.private.append(name)
            if name in self.repos: return self.reply(409, dict(error='it exists', url=f'{self.url()}/{name}'))
            self.repos[name] = {}
            return self.reply(200, dict(url=f'{self.url()}/{name}', name=name))
        kind, name = re.fullmatch(r'/api/models/([^/]+/[^/]+)/(\w+)/main.*', self.path).groups()[::-1]
        if kind == 'preupload':
            files = [dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]
            return self.reply(200, dict(files=files))
        for line in map(json.loads, body.splitlines()):
            if line['key'] != 'file': continue
            self.repos[name][line['value']['path']] = base64.b64decode(line['value']['content'])
        self.reply(200, dict(success=True, commitOid='f'*40, commitUrl=f'{self.url()}/{name}/commit/{"f"*40}'))

    def do_GET(self):
        self.asked.append(self.path)
        if found := re.fullmatch(r'/api/models/([^/]+/[^/]+)(/revision/\w+|/tree/\w+)?(\?.*)?', self.path):
            name = found[1]
            if name not in self.repos: return self.reply(404, dict(error='no'), X_Error_Code='RepoNotFound')
            files = self.repos[name]
            if 'tree' in (found[2] or ''):
                def entry(f, b): return dict(type='file', path=f, size=len(b), oid=hashlib.sha1(b).hexdigest())
                return self.reply(200, [entry(*o) for o in files.items()])
            return self.reply(200, dict(id=name, sha='f'*40, private=False, tags=[], downloads=0, likes=0,
                                        siblings=[dict(rfilename=f) for f in files]))
        if found := re.fullmatch(r'/([^/]+/[^/]+)/resolve/\w+/(.+)', self.path):
            content = self.repos.get(found[1], {}).get(found[2])
            if content is None: return self.reply(404, dict(error='no'), X_Error_Code='EntryNotFound')
            return self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit='f'*40)
        self.reply(404, dict(error=f'{self.path} is not known here'))

    do_HEAD = do_GET
    def url(self): return f'http://127.0.0.1:{self.server.server_port}'


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('HF_TOKEN', token)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'cache'))
    Hub.repos.clear(); Hub.asked.clear(); Hub.private.clear()
    yield Hub
    server.shutdown()


@pytest.fixture(scope='module')
def run(simam_ema, digits_args, tmp_path_factory):
    out = tmp_path_factory.mktemp('hub')
    status, _, err = simam_ema('train', '--variant', 'hybrid', *digits_args, '--no-report', '--out', out)
    assert status == 0, err
    return next(out.glob('*/model.json')).parent


def code_of(card): return re.search(r'```python\n(.*?)```', card, re.S)[1]


def test_pushed_and_taken_back(run, hub, simam_ema, tmp_path, monkeypatch):
    status, out, err = simam_ema('export', run, '--push', 'me/digits', '--private')
    assert status == 0 and out.splitlines()[-1].endswith('/me/digits'), err
    files = hub.repos['me/digits']
    assert {*files} == {'README.md', 'model.json', 'model.safetensors'} and hub.private == ['me/digits']
    assert simam_ema('export', run, '--push', 'me/digits')[0] == 0, 'again: the same repository'
    _, head, text = files['README.md'].decode().split('---\n', 2)
    meta, metrics = yaml.safe_load(head), json.loads((run/'metrics.json').read_text())
    assert meta['pipeline_tag'] == 'image-classification' and meta['datasets'] == ['digits']
    first = meta['model-index'][0]['results'][0]['metrics'][0]
    assert (first['name'], first['value']) == ('Top-1', round(metrics['top1'], 4))
    images = load_samples('digits').files[:3]
    monkeypatch.chdir(tmp_path)
    (tmp_path/'image.png').write_bytes(images[0].read_bytes())
    here = {}
    exec(code_of(text) + '\nfound = predict_images(learner, "image.png")', here)
    want = predict_images(run, images)
    assert here['found'].prob[0] == pytest.approx(want.prob[0], abs=1e-5)
    assert predict_images('hf:me/digits', images).prob.tolist() == pytest.approx(want.prob.tolist(), abs=1e-5)
    assert [r[0][0] for r in open_model('hf:me/digits').classify(images)] == want.label.tolist()
    status, out, err = simam_ema('predict', 'hf:me/digits', 'image.png')
    assert status == 0 and f'image.png: {want.label[0]} ' in out, err


def test_a_card_lies_in_every_bundle(run, tmp_path, monkeypatch):
    "And its code runs there."
    card = (run/'README.md').read_text()
    monkeypatch.chdir(run)
    (tmp_path/'image.png').write_bytes(load_samples('digits').files[0].read_bytes())
    exec(code_of(card).replace('image.png', str(tmp_path/'image.png')), {})


def test_what_the_hub_refuses(run, hub, simam_ema, monkeypatch):
    def refused(name='me/digits'):
        status, out, err = simam_ema('export', run, '--push', name)
        assert status == 2 and err.count('\n') == 1 and 'pushed' not in out, (out, err)
        return err
    monkeypatch.setenv('HF_TOKEN', 'hf_read_only')
    assert 'gives no access to me/digits' in refused()
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    assert 'a token that is valid' in refused()
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.setattr('huggingface_hub.constants.HF_TOKEN_PATH', '/nowhere')
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    assert 'wants a token' in refused()
    monkeypatch.undo()


def test_names_nets_and_other_models(hub, monkeypatch, run, simam_ema):
    hub.repos['me/other'] = {'config.json': b'{}', 'README.md': b'x'}
    for name, want in [('me/none', 'there is no model me/none'), ('not a name', 'ORG/NAME is wanted'),
                       ('me/other', 'is not a bundle of this package')]:
        with pytest.raises(UserError, match=want): load_exported(f'hf:{name}')
    assert 'ORG/NAME is wanted' in simam_ema('export', run, '--push', 'a/b/c')[2]
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(UserError, match='the Hub cannot be reached'): load_exported('hf:me/digits')
    status, _, err = simam_ema('export', run, '--push', 'me/digits')
    assert status == 2 and err.count('\n') == 1 and 'the Hub cannot be reached' in err, err
