"Tests leave nothing in the temporary folder"
import os, subprocess, sys
from pathlib import Path

code = """
from tiny import new_folder, tiny_learner
learn = tiny_learner()
learn.save('net')
assert learn.path.exists() and new_folder()!=learn.path
"""

def test_nothing_is_left(tmp_path):
    env = os.environ | dict(TMPDIR=str(tmp_path))
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=Path(__file__).parent, env=env, check=True)
    # torch makes an empty folder of its own, always of the same name
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith('torchinductor_')]

def test_folders_are_made_in_one_place_only():
    files = [f for f in Path(__file__).parent.glob('*.py') if f!=Path(__file__)]
    assert {f.name for f in files if 'mkdtemp' in f.read_text()} == {'tiny.py'}
