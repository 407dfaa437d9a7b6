"The script that compares recipes: links of a set, arguments, and that it chooses as its page does"
import os, re, sys
from pathlib import Path
from types import SimpleNamespace
import pandas as pd, pytest
import fine_tuning, fine_tuning_ideas
from fastai_featreg.comparison.fingerprints import data_id


def files_of(folder, *names):
    "Files that hold their own names"
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text(name)
    return [folder/name for name in names]

def laid(root): return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob('*') if p.is_file()}

def in_parts(train, tune, test): return dict(train=train, tune=tune, test=test)

def data_of(root, stage):
    "Fingerprint of a stage, as a row of it has"
    sides = [sorted((root/stage/side).rglob('*.jpg')) for side in ('train', 'valid')]
    loaders = [SimpleNamespace(dataset=SimpleNamespace(items=files)) for files in sides]
    return data_id(SimpleNamespace(path=root/stage, loaders=loaders))


def test_links_are_those_that_rows_know(tmp_path):
    "As they always were where names are their own: the data of rows that are there stay the same"
    a,b,c = files_of(tmp_path/'set', 'x/1.jpg', 'x/2.jpg', 'y/1.jpg')
    root = tmp_path/'links'
    for stage,own in (('tune', b), ('final', c)):
        for side,f in (('train', a), ('valid', own)):
            link = root/stage/side/f.parent.name/f.name
            link.parent.mkdir(parents=True)
            os.symlink(f, link)
    before = laid(root),data_of(root, 'tune'),{p: p.lstat().st_mtime_ns for p in root.rglob('*')}
    fine_tuning.lay(fine_tuning.links(in_parts([a], [b], [c]), tmp_path/'set'), root)
    after = laid(root),data_of(root, 'tune'),{p: p.lstat().st_mtime_ns for p in root.rglob('*')}
    assert before==after and before[0]=={'tune/train/x/1.jpg': 'x/1.jpg', 'tune/valid/x/2.jpg': 'x/2.jpg',
                                         'final/train/x/1.jpg': 'x/1.jpg', 'final/valid/y/1.jpg': 'y/1.jpg'}

def test_no_image_is_left_on_two_sides(tmp_path):
    "Nor a class that has no images now, nor a link that leads elsewhere"
    a,b,c,d = files_of(tmp_path/'set', 'x/1.jpg', 'x/2.jpg', 'x/3.jpg', 'y/4.jpg')
    root = tmp_path/'links'
    lay = lambda *parts: fine_tuning.lay(fine_tuning.links(in_parts(*parts), tmp_path/'set'), root)
    lay([a, d], [b], [c])
    (root/'tune/train/x/1.jpg').unlink()
    os.symlink(c, root/'tune/train/x/1.jpg')
    lay([a, b], [c], [])
    assert laid(root)=={'tune/train/x/1.jpg': 'x/1.jpg', 'tune/train/x/2.jpg': 'x/2.jpg',
                        'tune/valid/x/3.jpg': 'x/3.jpg', 'final/train/x/1.jpg': 'x/1.jpg',
                        'final/train/x/2.jpg': 'x/2.jpg'}
    assert not list(root.rglob('y')) and not (root/'final/valid').exists()

def test_two_files_of_one_name_are_two_links(tmp_path):
    a,b,c = files_of(tmp_path/'set', 'old/x/1.jpg', 'new/x/1.jpg', 'new/x/2.jpg')
    fine_tuning.lay(fine_tuning.links(in_parts([a, b], [c], []), tmp_path/'set'), tmp_path/'links')
    assert laid(tmp_path/'links'/'tune')=={'train/x/old_x_1.jpg': 'old/x/1.jpg', 'train/x/new_x_1.jpg': 'new/x/1.jpg',
                                           'valid/x/2.jpg': 'new/x/2.jpg'}
    taken = files_of(tmp_path/'set', 'other/x/old_x_1.jpg')
    with pytest.raises(ValueError, match='got x/old_x_1.jpg twice'):
        fine_tuning.link_names([a, b, *taken], tmp_path/'set')


@pytest.mark.parametrize('script, args, says', [
    (fine_tuning, 'flowers tune --recipes whole,hole', "--recipes must be among .*, got 'hole'"),
    (fine_tuning, 'flowers tune --methods CAMLos()', 'CAMLos'),
    (fine_tuning_ideas, 'flowers --ideas 1,7', "--ideas must be among 1, 2, 3, 4, 5, got '7'"),
    (fine_tuning_ideas, 'flowers --jobs 2', '--jobs must be 1, got 2')])
def test_what_it_does_not_know_is_said(script, args, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['script', *args.split()])
    with pytest.raises(SystemExit): script.main()
    assert re.search(says, capsys.readouterr().err)

def test_both_scripts_have_the_same_arguments(monkeypatch):
    "What `run` reads of them"
    seen = []
    monkeypatch.setattr(fine_tuning_ideas, 'lay_set', lambda args: None)
    monkeypatch.setattr(fine_tuning_ideas, 'enter', lambda: None)
    monkeypatch.setattr(fine_tuning, 'lay_set', lambda args: None)
    for script,args in ((fine_tuning, 'flowers tune --recipes whole'),
                        (fine_tuning_ideas, 'flowers --ideas 5')):
        monkeypatch.setattr(script, 'run', lambda args, *rest: seen.append((args, *rest)))
        monkeypatch.setattr(sys, 'argv', ['script', *args.split(), '--bs', '7'])
        script.main()
    (a, name, labels, n),(b, other, ideas, m) = seen
    common = 'set per_class arch scratch head size bs jobs work stage'.split()
    assert [getattr(a, o) for o in common]==[getattr(b, o) for o in common] and a.bs==7 and b.out==Path('ideas')
    assert (name, n)==(other, m)==('whole', 2) and labels==[*fine_tuning.methods[:-1], 'MixUp()']
    assert ideas==fine_tuning_ideas.arms[5]

def test_the_chosen_recipe_is_run_finally(monkeypatch, tmp_path, capsys):
    "For plain training and for each method, 'mixup' among them; without rows it says what is missing"
    runs = []
    rows = pd.DataFrame([
        dict(method=m, tried=r, accuracy=a, seed=0, error='', set='flowers50', stage='tune')
        for m,r,a in (('plain', 'whole', .9), ('plain', 'fine_tune', .8), ('MixUp()', 'fine_tune', .7),
                      ('CAMLoss()', 'whole', .7))])
    monkeypatch.setattr(fine_tuning, 'lay_set', lambda args: None)
    monkeypatch.setattr(fine_tuning, 'run', lambda args, *rest: runs.append(rest))
    monkeypatch.setattr(sys, 'argv', ['script', 'flowers', 'final', '--out', str(tmp_path)])
    with pytest.raises(SystemExit): fine_tuning.main()
    assert 'run tune first' in capsys.readouterr().err and not runs
    monkeypatch.setattr(fine_tuning, 'all_runs', lambda out, of_set: rows)
    fine_tuning.main()
    assert runs==[('whole', ['CAMLoss()'], 5), ('fine_tune', ['MixUp()'], 5)]

def test_no_method_is_plain_training_alone(monkeypatch):
    runs = []
    monkeypatch.setattr(fine_tuning, 'lay_set', lambda args: None)
    monkeypatch.setattr(fine_tuning, 'run', lambda args, *rest: runs.append(rest))
    monkeypatch.setattr(sys, 'argv', ['script', 'flowers', 'tune', '--methods', '', '--recipes', 'whole,fine_tune'])
    fine_tuning.main()
    assert runs==[('whole', [], 2), ('fine_tune', [], 2)]
