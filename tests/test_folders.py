"Layouts of folders: which images train, which validate, what is left out, and what is refused, one case a line"
import os
import numpy as np, pytest
from pathlib import Path
from PIL import Image
from fastai.vision.all import get_image_files, parent_label
from fastai_featreg.comparison.command import main
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.data import folder_dls, load_data
from fastai_featreg.folders import ClassOf, read_layout, stratified_split

small = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)


def plant(root: Path, text: str) -> Path:
    """Make a folder from a text

    `cat/1.png` is an image of 8 pixels, `cat/1-4.png` are four of them; `a->b` is a link from a to b (below `root`);
    a name that ends in a slash is an empty folder, any other file holds the letter x; `{train,val}/1.png` is both.
    """
    for word in text.split():
        if '{' in word:
            head,_,rest = word.partition('{')
            middle,_,tail = rest.partition('}')
            for m in middle.split(','): plant(root, head + m + tail)
            continue
        name,_,target = word.partition('->')
        file = root/name
        if name.endswith('/'):
            file.mkdir(parents=True, exist_ok=True)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        first,_,last = file.stem.partition('-')
        if target: file.symlink_to(os.path.relpath(root/target, file.parent) if target!='.' else root)
        elif last.isdigit():
            for i in range(int(first), int(last) + 1): plant(file.parent, f'{i}{file.suffix}')
        elif file.suffix.lower() in ('.png', '.jpg'): Image.fromarray(small).save(file)
        else: file.write_text('x')
    return root


CD = '{cat,dog}/1-4.png ' # a plain folder: two classes of four
BOTH = 'cat 3+1, dog 3+1'
def put(part): return ' '.join(f'{part}/{c}/1-4.png' for c in ('cat', 'dog')) + ' '

# name: (files, counts of the classes, where the split comes from, what the text tells as well)
layouts = {
    'plain': (CD, BOTH, 'at random, 20 %', ''),
    'train and valid': (put('train') + put('valid'), 'cat 4+4, dog 4+4', 'folder valid', ''),
    'val': (put('train') + put('val'), 'cat 4+4, dog 4+4', 'folder val ', ''),
    'dev': (put('train') + put('dev'), 'cat 4+4, dog 4+4', 'folder dev', ''),
    'upper case': (put('TRAIN') + put('VALID'), 'cat 4+4, dog 4+4', 'folder VALID', ''),
    'Train and Valid': (put('Train') + put('Valid'), 'cat 4+4, dog 4+4', 'folder Valid', ''),
    'Training and Testing': (put('Training') + put('Testing'), 'cat 4+4, dog 4+4', 'folder Testing', ''),
    'training and validation': (put('training') + put('validation'), 'cat 4+4, dog 4+4', 'folder validation', ''),
    'trn and tst': (put('trn') + put('tst'), 'cat 4+4, dog 4+4', 'folder tst', ''),
    'sets': (put('training_set') + put('test_set'), 'cat 4+4, dog 4+4', 'folder test_set', ''),
    'glued sets': (put('trainset') + put('TestSet'), 'cat 4+4, dog 4+4', 'folder TestSet', ''),
    'years of a contest': (put('train2017') + put('val2017'), 'cat 4+4, dog 4+4', 'folder val2017', ''),
    'shared other word': (put('seg_train') + put('seg_test'), 'cat 4+4, dog 4+4', 'folder seg_test', ''),
    'valid before test': (put('train') + put('valid') + put('test'), 'cat 4+4, dog 4+4', 'folder valid',
                          'another validates (1: test)'),
    'unlabelled test': (put('train') + 'test/1-9.png', BOTH, 'at random', 'without class folders (1: test)'),
    'unlabelled valid': (put('train') + 'valid/1-9.png', BOTH, 'at random', 'without class folders (1: valid)'),
    'unlabelled in images': (put('train') + 'test/images/1-9.png', BOTH, 'at random',
                             'without class folders (1: test)'),
    # folders called images or data that hold the classes themselves
    'classes in images': ('train/images/{cat,dog}/1-4.png valid/images/{cat,dog}/1-4.png',
                          'cat 4+4, dog 4+4', 'folder valid', ''),
    'classes in data': ('train/data/{cat,dog}/1-4.png test/data/{cat,dog}/1-4.png',
                        'cat 4+4, dog 4+4', 'folder test', ''),
    'classes in images of one part': (put('train') + 'valid/images/{cat,dog}/1-4.png',
                                      'cat 4+4, dog 4+4', 'folder valid', ''),
    'unlabelled valid, test': (put('train') + 'valid/1-9.png ' + put('test'), 'cat 4+4, dog 4+4', 'folder test',
                               '(1: valid)'),
    'train alone': (put('train'), BOTH, 'at random', 'the classes are the folders of train'),
    'train beside sample': (put('train') + put('valid') + put('sample'), 'cat 4+4, dog 4+4', 'folder valid',
                            '(1: sample)'),
    'train and empty valid': (put('train') + 'valid/', BOTH, 'at random', 'folders without images (1: valid)'),
    'fewer classes validate': (put('train') + 'valid/cat/1.png', 'cat 4+1, dog 4+0', 'folder valid',
                               'no validation images: dog'),
    'valid inside classes': (CD + put('valid'), 'cat 4+4, dog 4+4', 'folder valid', ''),
    'a class called train': ('{bus,car,train}/1-4.png', 'bus 3+1, car 3+1, train 3+1', 'at random',
                             'train is taken as a class'),
    'a class test_tube': ('{flask,test_tube}/1-4.png', 'flask 3+1, test_tube 3+1', 'at random', ''),
    'one wrapper': (put('photos'), BOTH, 'at random', 'the classes are the folders of photos'),
    'two wrappers': (put('a/photos'), BOTH, 'at random', 'the classes are the folders of a/photos'),
    'wrapped split': (put('set/train') + put('set/val'), 'cat 4+4, dog 4+4', 'folder set/val', ''),
    'wrapped twice': (put('train/train') + put('test/test'), 'cat 4+4, dog 4+4', 'folder test/test', ''),
    'wrapper and archive dust': (put('photos') + put('__MACOSX'), BOTH, 'at random', 'system folders (1: __MACOSX)'),
    'class and year': ('{cat,dog}/{2019,2020}/1-2.png', BOTH, 'at random', ''),
    'class and date': ('{cat,dog}/{2019-05-01,2020-06}/1-2.png', BOTH, 'at random', ''),
    'class and images': ('{cat,dog}/images/1-4.png', BOTH, 'at random', ''),
    'class and part': ('{cat,dog}/{part1,part_2}/1-2.png', BOTH, 'at random', ''),
    'class and loose below': (CD + 'cat/old/5-8.png', 'cat 6+2, dog 3+1', 'at random', ''),
    'deep below years': ('{cat,dog}/2019/{05,06}/1-2.png', BOTH, 'at random', ''),
    'year in a split': ('{train,val}/{cat,dog}/2019/1-4.png', 'cat 4+4, dog 4+4', 'folder val', ''),
    'tiny imagenet': ('train/{cat,dog}/images/1-4.png val/images/1-9.png', BOTH, 'at random', '(1: val)'),
    'level told by valid': ('train/{cat,dog}/{a,b}/1-2.png valid/{cat,dog}/1.png', 'cat 4+1, dog 4+1', 'folder valid',
                            ''),
    'dust of a Mac': (CD + '__MACOSX/cat/._1.png cat/._2.png', BOTH, 'at random', 'hidden files (1: cat/._2.png)'),
    'checkpoints': (CD + '.ipynb_checkpoints/1.png cat/.ipynb_checkpoints/1.png', BOTH, 'at random',
                    'system folders (2:'),
    'a NAS': (CD + '@eaDir/1.png cat/@eaDir/1.png #recycle/1.png', BOTH, 'at random', 'system folders (3:'),
    'hidden folder': (CD + '.cache/1.png', BOTH, 'at random', '(1: .cache)'),
    'hidden image': (CD + 'cat/.5.png', BOTH, 'at random', 'hidden files (1: cat/.5.png)'),
    'loose images': (CD + '1-3.png', BOTH, 'at random', 'images beside the class folders (3: 1.png, 2.png, 3.png)'),
    'loose images in train': (put('train') + put('val') + 'train/1.png', 'cat 4+4, dog 4+4', 'folder val',
                              '(1: train/1.png)'),
    'loose beside a split': (put('train') + put('val') + '1.png', 'cat 4+4, dog 4+4', 'folder val',
                             'beside the split folders (1: 1.png)'),
    'an empty class': (CD + 'emu/', BOTH, 'at random', 'folders without images (1: emu)'),
    'other files': (CD + 'read.me cat/a.txt dog/b.csv', BOTH, 'at random', 'files that are no images (3:'),
    'a class of text': (CD + 'notes/a.txt', BOTH, 'at random', '(1: notes/a.txt)'),
    'suffix in capitals': ('cat/1-2.PNG cat/3-4.JPG dog/1-4.png', BOTH, 'at random', ''),
    'names with dots': ('v1.0/1-4.png v2.0/1-4.png', 'v1.0 3+1, v2.0 3+1', 'at random', ''),
    'names of numbers': ('{0,1,10,2}/1-4.png', '0 3+1, 1 3+1, 10 3+1, 2 3+1', 'at random', ''),
    'unicode': ('{кот,犬}/1-4.png', 'кот 3+1, 犬 3+1', 'at random', ''),
    'two forms of an accent': ('train/{caf\u00e9,dog}/1-4.png valid/{cafe\u0301,dog}/1.png', 'caf\u00e9 4+1, dog 4+1',
                               'folder valid', ''),
    'link to itself': (CD + 'all->. cat/up->.', BOTH, 'at random', 'back to a folder above (2: all, cat/up)'),
    'link to a class': (CD + 'kitty->cat', BOTH, 'at random', 'there already (1: kitty)'),
    'link to an image': (CD + 'cat/5.png->cat/1.png', BOTH, 'at random', 'same file again, by a link (1: cat/5.png)'),
    'link to nowhere': (CD + 'cat/5.png->cat/9.png', BOTH, 'at random', 'lead nowhere (1: cat/5.png)'),
    'valid links to train': (put('train') + 'valid->train', BOTH, 'at random', 'there already (1: valid)'),
    'a folder called x.png': (CD + 'cat/x.png/', BOTH, 'at random', ''),
    'a table without boxes': (CD + 'labels.csv', BOTH, 'at random', 'labels.csv is not read'),
}


@pytest.mark.parametrize('name', layouts)
def test_layout(tmp_path, name):
    files,counts,source,told = layouts[name]
    layout = read_layout(plant(tmp_path/'data', files))
    assert ', '.join(f'{c} {t}+{v}' for c,(t,v) in layout.classes.items())==counts, layout
    assert source.strip() in layout.source and told in str(layout), layout
    for part in (layout.train, layout.valid):
        assert all(layout.label_of(o.file)==o.label for o in part), 'the file does not tell its class'
    assert not {o.file for o in layout.train} & {o.file for o in layout.valid}
    assert len(str(layout).splitlines()) < 12 and str(tmp_path) not in '\n'.join(str(layout).splitlines()[1:])


# name: (files, what the sentence says)
refused = {
    'nothing': ('x/', 'has no images'),
    'text only': ('cat/a.txt dog/b.txt', 'has no images (files: .txt)'),
    'no suffix': ('cat/a dog/b', 'has no images (files: no suffix)'),
    'one class': ('cat/1-4.png', 'one class only (cat)'),
    'one class and years': ('cat/{2019,2020}/1-4.png', 'one class only (cat)'),
    'one class in train': ('train/cat/1-4.png valid/cat/1.png', 'one class only (cat)'),
    'loose only': ('1-4.png', 'no folders of classes'),
    'one image': (CD + 'emu/1.png', 'class emu has a single image'),
    'unknown class validates': (put('train') + put('valid') + 'valid/emu/1.png', 'no training images (emu)'),
    'case of a class': ('train/{Cat,Dog}/1.png valid/{cat,dog}/1.png',
                        '(cat, dog), which differ from training classes in case only'),
    'two levels': ('pets/{cat,dog}/1-2.png farm/{cow,pig}/1-2.png',
                   'the classes are farm, pets, or the classes are cat, cow, dog'),
    'sites': ('{north,south}/{cat,dog}/1-2.png', 'two ways: the classes are north, south, or the classes are cat, dog'),
    'years above': ('{2019,2020}/{cat,dog}/1-2.png', 'two ways'),
    'one of two nested': ('cat/1-2.png dog/{poodle,pug}/1-2.png', 'two ways'),
    'numbers below': ('{cat,dog}/{1,2}/1-2.png', 'two ways'),
    'two levels in train': ('train/{pets,farm}/{a,b}/1.png valid/{pets,farm}/{a,b}/1.png', 'two ways'),
    'split below classes': ('{cat,dog}/{train,test}/1-2.png', 'put train and valid above the classes'),
    'no labels': ('train/1-4.png test/1-4.png', 'images in train, test, but no folders of classes'),
    'train without labels': ('train/1-4.png', 'no folders of classes'),
    'valid alone': (put('valid'), 'but no training folder'),
    'valid and test alone': (put('valid') + put('test'), 'no training folder'),
    'test beside classes': (CD + 'test/1-4.png',
                            'test is a class like cat, dog, or it holds images to validate or test on'),
    'val beside classes': (CD + 'val/{red,blue}/1-4.png', 'val is a class like cat, dog'),
    'train or a class': ('train/{2019,2020}/1-2.png {bus,car}/1-2.png',
                         'train is the training folder, or its classes are train, bus'),
    'two training folders': (put('train') + put('training') + put('valid'),
                             'train holds the training images, or training does'),
    'two validation folders': (put('train') + put('val') + put('valid'),
                               'val holds the validation images, or valid does'),
    'a file on both sides': (put('train') + 'valid/cat/9.png->train/cat/1.png',
                             '1 images on both sides of the split, by links (valid/cat/9.png)'),
    'a class on both sides': (put('train') + 'valid/dog/1.png valid/cat->train/cat', '4 images on both sides'),
    'a file in two classes': (CD + 'dog/9.png->cat/1.png', 'in another class'),
}


@pytest.mark.parametrize('name', refused)
def test_refused(tmp_path, name):
    files,text = refused[name]
    with pytest.raises(ValueError) as e: read_layout(plant(tmp_path/'data', files))
    assert text in str(e.value) and '\n' not in str(e.value) and 40 < len(str(e.value)) < 500, e.value


# arguments: (files, arguments, counts or None, source or the sentence)
asked = {
    'valid_pct': (CD, dict(valid_pct=0.5), 'cat 2+2, dog 2+2', '50 %'),
    'valid_pct of train': (put('train') + 'test/1.png', dict(valid_pct=0.5), 'cat 2+2, dog 2+2', '50 %'),
    'n_valid within the share': (CD, dict(n_valid=2), BOTH, 'at random, 20 % of each class (seed'),
    'n_valid beyond it': (CD, dict(n_valid=6), 'cat 1+3, dog 1+3', 'and at least 3'),
    'n_valid odd': (CD, dict(n_valid=3), 'cat 2+2, dog 2+2', 'and at least 2'),
    'n_valid of some classes': ('cat/1-4.png dog/1-40.png', dict(n_valid=4), 'cat 2+2, dog 32+8', 'at least 2'),
    'n_valid, a folder': (put('train') + put('valid'), dict(n_valid=6), 'cat 4+4, dog 4+4', 'folder valid'),
    'n_valid, every image': (CD, dict(n_valid=8), None, 'n_valid is 8, which takes 4 images of class cat'),
    'n_valid and valid_pct': (CD, dict(n_valid=6, valid_pct=.25), BOTH, '25 % of each class (seed'),
    'valid inside': (CD + put('held'), dict(valid='held'), 'cat 4+4, dog 4+4', 'folder held'),
    'valid in another case': (put('train') + put('valid') + put('test'), dict(valid='test'), 'cat 4+4, dog 4+4',
                              'folder test'),
    'valid of another name': (put('train') + put('eins'), dict(valid='eins'), 'cat 4+4, dog 4+4', 'folder eins'),
    'valid is not there': (CD, dict(valid='gone'), None, 'gone does not exist'),
    'valid is a file': (CD + 'list.txt', dict(valid='list.txt'), None, 'is a file'),
    'valid without classes': (CD + 'held/1-3.png', dict(valid='held'), None, 'no images in folders of classes'),
    'valid is a class': (CD, dict(valid='cat'), None, 'no images in folders of classes'),
    'valid and valid_pct': (put('train') + put('valid'), dict(valid='valid', valid_pct=.2), None,
                            'leave one of them out'),
    'valid_pct, a folder': (put('train') + put('valid'), dict(valid_pct=.3), None,
                            'valid holds validation images: leave it out'),
    'valid_pct of 1': (CD, dict(valid_pct=1), None, 'valid_pct is 1'),
    'valid_pct of 0': (CD, dict(valid_pct=0), None, 'valid_pct is 0'),
    'valid_pct of percents': (CD, dict(valid_pct=20), None, 'valid_pct is 20'),
    'valid_pct NaN': (CD, dict(valid_pct=float('nan')), None, 'valid_pct is nan'),
    'valid_pct text': (CD, dict(valid_pct='a fifth'), None, 'valid_pct is a fifth'),
    'class_level 1': ('pets/{cat,dog}/1-2.png farm/{cow,pig}/1-2.png', dict(class_level=1), 'farm 3+1, pets 3+1',
                      'at random'),
    'class_level 2': ('pets/{cat,dog}/1-4.png farm/cow/1-4.png', dict(class_level=2), 'cat 3+1, cow 3+1, dog 3+1',
                      'at random'),
    'class_level 2, a name twice': ('{north,south}/{cat,dog}/1-2.png', dict(class_level=2), BOTH, 'at random'),
    'class_level 3': (CD, dict(class_level=3), None, 'class_level must be 1, 2 or None'),
}


@pytest.mark.parametrize('name', asked)
def test_asked(tmp_path, name, monkeypatch):
    files,kwargs,counts,text = asked[name]
    data = plant(tmp_path/'data', files)
    monkeypatch.chdir(tmp_path)
    if counts is None:
        with pytest.raises(ValueError) as e: read_layout(data, **kwargs)
        assert text in str(e.value) and '\n' not in str(e.value), e.value
    else:
        layout = read_layout(data, **kwargs)
        assert ', '.join(f'{c} {t}+{v}' for c,(t,v) in layout.classes.items())==counts, layout
        assert text in layout.source, layout


def test_valid_outside(tmp_path, monkeypatch):
    data,held = plant(tmp_path/'data', CD),plant(tmp_path/'held', CD)
    layout = read_layout(data, valid=held)
    assert layout.classes=={'cat': (4, 4), 'dog': (4, 4)} and all(held in o.file.parents for o in layout.valid)
    with pytest.raises(ValueError, match='8 images on both sides'): read_layout(data, valid=data)
    plant(data, put('held'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='two ways'): read_layout(data, valid='held')
    assert len(read_layout(data, valid=data/'held').valid)==8


def test_plain_folders_are_split_as_before(tmp_path):
    "Order and split are those of sorted files and `stratified_split`: results on plain folders stay what they were"
    data = plant(tmp_path/'data', '{emu,cat,dog}/1-15.png cat/16-20.jpg')
    files = sorted(get_image_files(data))
    for seed in (42, 0):
        train,valid = stratified_split([parent_label(f) for f in files], 0.2, seed)
        layout = read_layout(data, seed=seed)
        assert [o.file for o in layout.train]==[files[i] for i in train]
        assert [o.file for o in layout.valid]==[files[i] for i in valid]
    assert [o.file for o in layout.valid]==[o.file for o in read_layout(data, seed=0, n_valid=6).valid]
    larger = read_layout(data, seed=0, n_valid=15)
    assert {o.file for o in layout.valid} < {o.file for o in larger.valid}


def test_links_to_another_disk_are_followed(tmp_path):
    store = plant(tmp_path/'store', CD)
    data = plant(tmp_path/'data', 'train/ valid/')
    for c in ('cat', 'dog'):
        (data/'train'/c).symlink_to(store/c)
        (data/'valid'/c).mkdir()
        for i in (1, 2): (data/'valid'/c/f'{i}.png').symlink_to(plant(tmp_path/'other', f'{c}/{i}.png')/c/f'{i}.png')
    assert read_layout(data).classes=={'cat': (4, 2), 'dog': (4, 2)}


def test_many_links_across_end(tmp_path):
    "Twelve folders that link to each other have more than 12! paths"
    data = plant(tmp_path/'data', ' '.join(f'{chr(97+i)}/1-2.png' for i in range(12)))
    for a in data.iterdir():
        for b in sorted(data.iterdir()):
            if a!=b: (a/f'to_{b.name}').symlink_to(b)
    with pytest.raises(ValueError, match='another class'): read_layout(data)


def test_hard_links(tmp_path):
    data = plant(tmp_path/'data', put('train') + 'valid/{cat,dog}/1.png')
    (data/'valid'/'cat'/'9.png').hardlink_to(data/'train'/'cat'/'1.png')
    with pytest.raises(ValueError, match='both sides'): read_layout(data)


def test_pipes_are_not_opened(tmp_path):
    data = plant(tmp_path/'data', CD)
    os.mkfifo(data/'cat'/'9.png')
    assert 'neither files nor folders (1: cat/9.png)' in str(read_layout(data))


@pytest.mark.skipif(os.geteuid()==0, reason='root may read every folder')
def test_a_folder_that_may_not_be_read(tmp_path):
    data = plant(tmp_path/'data', CD)
    (data/'cat').chmod(0)
    try:
        with pytest.raises(ValueError, match='cannot be read'): read_layout(data)
    finally: (data/'cat').chmod(0o755)


def test_names_that_break_lines(tmp_path):
    data = plant(tmp_path/'data', CD)
    (data/'a\nclass').mkdir()
    for i in range(4): Image.fromarray(small).save(data/'a\nclass'/f'{i}\r.png')
    (data/('x'*200)).mkdir()
    for i in range(4): Image.fromarray(small).save(data/('x'*200)/f'{"y"*240}{i}.png')
    for name in ('loose\n.png', os.fsdecode(b'bytes\xff.png')): Image.fromarray(small).save(data/name)
    layout = read_layout(data)
    assert layout.classes=={'a\nclass': (3, 1), 'cat': (3, 1), 'dog': (3, 1), 'x'*200: (3, 1)}
    assert len(str(layout).splitlines())==5 and r'a\nclass 3 + 1' in str(layout) and r'bytes\udcff.png' in str(layout)
    str(layout).encode()


def test_what_the_loaders_say_and_take(tmp_path):
    "The layout is told, and is what the loaders hold; labels of nested images are the classes"
    data = plant(tmp_path/'data', '{cat,dog}/{2019,2020}/1-4.png')
    told = []
    dls = folder_dls(data, size=8, bs=4, num_workers=0, augment=False, say=told.append)
    assert list(dls.vocab)==['cat', 'dog'] and (dls.train.n, dls.valid.n)==(12, 4)
    assert told==[str(read_layout(data))] and 'cat 6 + 2' in told[0]
    assert [dls.vocab[c] for _,c in dls.valid_ds]==[f.parent.parent.name for f in dls.valid_ds.items]
    more = load_data(data, size=8, bs=2, num_workers=0, n_train=4, n_valid=8, say=told.append)
    assert (more.train.n, more.valid.n)==(4, 8) and 'at least 4' in told[1]
    with pytest.raises(ValueError, match='n_train is 12, which takes 6 images of class cat, but there are 4'):
        folder_dls(data, size=8, bs=2, n_train=12, n_valid=8, say=told.append)
    for name in ('digits', 'cifar10', None):
        with pytest.raises(ValueError, match='is 0.3, but .* has a split of its own'): load_data(name, valid_pct=.3)


def test_class_of_a_file_elsewhere():
    label_of = ClassOf([Path('/a/train'), Path('/a/valid')])
    assert [label_of(f) for f in ('/a/train/cat/2019/1.png', '/a/valid/dog/1.png', '/b/emu/1.png', '/a/train/1.png')] \
        ==['cat', 'dog', 'emu', 'train']


def run(tmp_path, data, *args):
    "`featreg compare` on a folder, one run of plain and one of mixup; the rows of its table"
    out = tmp_path/'out'
    rc = main(['compare', str(data), '--arch', 'test_resnet', '--size', '32', '--bs', '2', '--methods', 'mixup',
               '--seeds', '1', '--epochs', '1', '--no-pretrained', '--out', str(out), *map(str, args)])
    return rc,read_results(out/'results.csv') if rc==0 else None


def test_comparison_shows_the_layout_before_it_trains(tmp_path, capsys):
    data = plant(tmp_path/'data', put('Training') + put('Testing') + '__MACOSX/1.png')
    rc,df = run(tmp_path, data)
    lines = capsys.readouterr().out.splitlines()
    assert rc==0 and set(df.n_train)=={'8'} and set(df.n_valid)=={'8'}
    first = [i for i,l in enumerate(lines) if 'classes: cat 4 + 4, dog 4 + 4' in l][0]
    assert 'folder Testing validates' in lines[first+1] and '__MACOSX' in lines[first+2]
    assert all('accuracy' not in l for l in lines[:first]), 'the layout is told after training'


def test_arguments_of_the_comparison(tmp_path, capsys):
    data,held = plant(tmp_path/'data', CD),plant(tmp_path/'held', '{cat,dog}/1.png')
    assert set(run(tmp_path/'a', data, '--valid-pct', .5)[1].n_valid)=={'4'}
    assert set(run(tmp_path/'b', data, '--valid', held)[1].n_valid)=={'2'}
    assert set(run(tmp_path/'c', data, '--n-valid', 6)[1].n_valid)=={'6'}
    capsys.readouterr()
    for args,text in ((['--valid-pct', 2], 'valid_pct is 2.0'), (['--valid', tmp_path/'gone'], 'gone does not exist'),
                      (['--n-valid', 8], 'one at least must train'),
                      (['--valid', held, '--valid-pct', .2], 'leave one of them out')):
        assert run(tmp_path/'d', data, *args)[0]==2
        err = capsys.readouterr().err.splitlines()
        assert len(err)==1 and err[0].startswith('featreg: ') and text in err[0], err
    assert main(['compare', 'digits', '--valid-pct', '0.3', '--out', str(tmp_path/'d')])==2
    assert 'digits has a split of its own' in capsys.readouterr().err


# ---- what is left out, and what is allowed and seldom meant ----

@pytest.mark.parametrize('out', ['featreg_results', 'runs/a', 'res'])
def test_results_of_a_comparison_are_no_class(tmp_path, out):
    data = plant(tmp_path/'data', CD)
    before = read_layout(data).classes
    (data/out).mkdir(parents=True)
    (data/out/'results.csv').write_text('method,seed,accuracy,featreg,torch\nplain,0,0.5,0.0.2,2.14\n')
    Image.fromarray(small).save(data/out/'comparison.png')
    layout = read_layout(data)
    assert layout.classes==before and 'results of a comparison' in str(layout)

def test_a_class_with_a_table_of_its_own_stays(tmp_path):
    data = plant(tmp_path/'data', CD)
    (data/'cat'/'results.csv').write_text('file,score\n1.png,3\n')
    assert list(read_layout(data).classes)==['cat', 'dog']

def test_copies_across_the_split_are_told(tmp_path):
    data = plant(tmp_path/'data', 'train/{cat,dog}/1-4.png valid/{cat,dog}/1-2.png')
    for i,f in enumerate(sorted(data.rglob('*.png'))): # all different, but for one
        Image.fromarray(np.roll(small, i, 0)*((i%3) + 1)).save(f)
    assert 'are copies of' not in str(read_layout(data))
    (data/'valid/cat/1.png').write_bytes((data/'train/cat/2.png').read_bytes())
    assert '1 validation images are copies of training images (1.png)' in str(read_layout(data))

def test_classes_that_differ_in_case_are_told(tmp_path):
    data = plant(tmp_path/'data', '{cat,Cat,dog}/1-4.png')
    assert 'classes that differ in case only: Cat, cat' in str(read_layout(data))

@pytest.mark.parametrize('images', ['img/1-4.png', '1-4.png'])
def test_a_table_that_is_not_read_is_told_in_the_refusal(tmp_path, images):
    data = plant(tmp_path/'data', images)
    (data/'labels.csv').write_text('file;label\n1.png;cat\n')
    with pytest.raises(ValueError, match='labels.csv'): read_layout(data)
