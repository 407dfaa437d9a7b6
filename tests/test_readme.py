"The README's snippets, pasted one by one, run in a fresh process"
import os, re, subprocess, sys
from pathlib import Path

readme = (Path(__file__).parent.parent/'README.md').read_text()


def test_snippets_run(tmp_path):
    snippets = re.findall(r'```python\n(.*?)```', readme, re.S)
    assert len(snippets)>=3
    (tmp_path/'pasted.py').write_text('\n'.join(snippets))
    done = subprocess.run([sys.executable, '-W', 'ignore', 'pasted.py'], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1', MPLBACKEND='Agg'))
    assert done.returncode==0, done.stderr
    assert 'fm_loss' in done.stdout


def test_every_local_link_and_picture_exists():
    links = [l for l in re.findall(r'\]\(([^)#]+)\)', readme) if '://' not in l]
    assert links
    for link in links: assert (Path(__file__).parent.parent/link).exists(), link
