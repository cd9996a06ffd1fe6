"Files that travel: independent archives below a size, the same bytes for the same content."
import gzip
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path


def light_files(
    folder:Path # Of a run
) -> list[Path]:
    "What a run found, without what it trained: weights and learners are made again by its command."
    return sorted(f for f in folder.rglob('*') if f.is_file() and f.suffix not in ('.pth', '.pkl', '.safetensors', '.onnx') and not f.name.startswith('.'))

def _add(tar:tarfile.TarFile, file:Path, name:str):
    "Add a file, which may be growing, without the time and the owner."
    info, content = tar.gettarinfo(file, name), file.read_bytes()
    info.size, info.mtime, info.uid, info.gid, info.uname, info.gname = len(content), 1_000_000_000, 0, 0, '', ''
    tar.addfile(info, io.BytesIO(content))

def write_archives(
    out:Path, # Folder for STEM-0.tar.gz, STEM-1.tar.gz, …
    stem:str,
    groups:Iterable[list[tuple[Path,str]]], # Files, and their names inside, that must stay together
    mb:float # No archive grows beyond so many MB (1e6 bytes)
) -> list[Path]:
    "Archives that each unpack by themselves, and appear whole or not at all. Raises `ValueError` for a group that is too large."
    out.mkdir(parents=True, exist_ok=True)
    done, groups = [], iter(groups)
    group = next(groups, None)
    while group is not None:
        path = out/f'{stem}-{len(done)}.tar.gz'
        tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            with open(tmp, 'wb') as raw, gzip.GzipFile('', 'wb', 4, raw, mtime=0) as z, tarfile.open(fileobj=z, mode='w') as tar:
                first = True
                while group is not None and (first or raw.tell() + sum(f.stat().st_size for f,_ in group) < 1e6*mb - 3e5):  # 3e5: what the compressor holds back
                    for file, name in group: _add(tar, file, name)
                    first, group = False, next(groups, None)
            if tmp.stat().st_size > 1e6*mb: raise ValueError(f'{path.name} would hold {tmp.stat().st_size/1e6:.1f} MB, more than {mb:g}: it cannot be split further.')
            os.replace(tmp, path)
        finally: tmp.unlink(missing_ok=True)
        done.append(path)
    return done
