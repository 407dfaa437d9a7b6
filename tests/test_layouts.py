"Official splits of known data sets, one small copy each: files, classes, and what is refused"
import inspect, subprocess, sys
import numpy as np, pytest
from pathlib import Path
from PIL import Image
from fastai_featreg import layouts
from fastai_featreg import sets as named
from fastai_featreg.comparison import fingerprints, reproduce
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.protocols import find_protocol
from fastai_featreg.comparison.rules import rules
from fastai_featreg.data import folder_dls, load_data
from fastai_featreg.folders import read_layout
from fastai_featreg.noise import train_labels


def plant(root: Path, pictures: str, texts: dict) -> Path:
    "Images of 8 pixels, all different, and text files"
    for i,name in enumerate(pictures.split()):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (8,8,3), dtype=np.uint8)
        Image.fromarray(pixels).save(root/name, quality=95)
    for name,text in texts.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_text(text)
    return root


# name: (images, text files, counts, where the split stands)
sets = {
    'tiny-imagenet-200': ('train/n1/images/n1_0.JPEG train/n1/images/n1_1.JPEG train/n2/images/n2_0.JPEG '
        'val/images/val_0.JPEG val/images/val_1.JPEG test/images/test_0.JPEG',
        {'val/val_annotations.txt': 'val_0.JPEG\tn2\t0\t0\t7\t7\nval_1.JPEG\tn1\t0\t0\t7\t7\n', 'wnids.txt': 'n1\nn2'},
        dict(n1=(2, 1), n2=(1, 1)), 'val/val_annotations.txt'),
    'CUB_200_2011': ('images/001.Tern/a.jpg images/001.Tern/b.jpg images/002.Wren/c.jpg images/002.Wren/d.jpg',
        {'images.txt': '1 001.Tern/a.jpg\n2 001.Tern/b.jpg\n3 002.Wren/c.jpg\n4 002.Wren/d.jpg\n',
         'image_class_labels.txt': '1 1\n2 1\n3 2\n4 2\n', 'train_test_split.txt': '1 1\n2 0\n3 0\n4 1\n',
         'classes.txt': '1 001.Tern\n2 002.Wren\n', 'bounding_boxes.txt': '1 0.0 0.0 4.0 4.0\n'},
        {'001.Tern': (1, 1), '002.Wren': (1, 1)}, 'train_test_split.txt'),
    'oxford-iiit-pet': ('images/great_pug_1.jpg images/great_pug_2.jpg images/Birman_7.jpg images/Birman_8.jpg',
        {'annotations/trainval.txt': 'great_pug_1 1 2 1\nBirman_7 2 1 1\n', 'annotations/list.txt': '#Image\n',
         'annotations/test.txt': 'great_pug_2 1 2 1\nBirman_8 2 1 1\n'},
        dict(Birman=(1, 1), great_pug=(1, 1)), 'annotations/test.txt'),
    'oxford-102-flowers': ('jpg/1.jpg jpg/2.jpg jpg/3.jpg jpg/4.jpg',
        {'train.txt': 'jpg/1.jpg 7\njpg/2.jpg 9\n', 'valid.txt': 'jpg/3.jpg 7\n', 'test.txt': 'jpg/4.jpg 9\n'},
        {'7': (1, 1), '9': (1, 0)}, 'valid.txt'),
    'food-101': ('images/pie/1.jpg images/soup/2.jpg images/pie/3.jpg',
        {'train.txt': 'pie/1\nsoup/2\n', 'test.txt': 'pie/3\n'}, dict(pie=(1, 1), soup=(1, 0)), 'test.txt'),
    'ImageNet': ('train/n1/a.JPEG train/n1/b.JPEG train/n2/c.JPEG val/n1/d.JPEG val/n2/e.JPEG', {},
        dict(n1=(2, 1), n2=(1, 1)), 'val validates'),
}


@pytest.mark.parametrize('name', sets)
@pytest.mark.parametrize('inside', ['', 'archive'])
def test_official_splits(tmp_path, name, inside):
    pictures,texts,counts,source = sets[name]
    plant(tmp_path/inside, pictures, texts)
    layout = read_layout(tmp_path, table=False)
    assert layout.classes==counts and source in layout.source
    for o in [*layout.train, *layout.valid]: assert layout.label_of(o.file)==o.label


@pytest.mark.parametrize('name', sets)
def test_loaders(tmp_path, name):
    pictures,texts,counts,_ = sets[name]
    said = []
    dls = folder_dls(plant(tmp_path, pictures, texts), size=8, bs=2, say=said.append)
    assert dls.vocab==sorted(counts) and len(dls.valid_ds)==sum(v for _,v in counts.values())
    assert 'split: ' in said[0]
    dls.train.one_batch()


def test_missing_files_are_named(tmp_path):
    pictures,texts,*_ = sets['CUB_200_2011']
    plant(tmp_path, pictures, texts)
    (tmp_path/'images'/'002.Wren'/'d.jpg').unlink()
    said = 'lacks 1 images that train_test_split.txt names .*d.jpg'
    with pytest.raises(ValueError, match=said): read_layout(tmp_path)


@pytest.mark.parametrize('given', [dict(valid_pct=.3), dict(class_level=1)])
def test_an_official_split_is_not_overridden(tmp_path, given):
    plant(tmp_path, *sets['oxford-iiit-pet'][:2])
    with pytest.raises(ValueError, match='must be left out where annotations/test.txt'): read_layout(tmp_path, **given)


noisy = ('path,noisy_labels_0,noisy_labels_25,is_valid\n' + ''.join(
    f'{side}/{c}/{i}.png,{c},{"b" if i==1 else c},{side=="val"}\n'
    for side,n in (('train', 4), ('val', 5)) for c in 'ab' for i in (range(1, 5) if n==4 else [5])))


def imagenette(root):
    pictures = ' '.join(f'train/{c}/{i}.png' for c in 'ab' for i in range(1, 5)) + ' val/a/5.png val/b/5.png'
    return plant(root, pictures, {'noisy_imagenette.csv': noisy})


@pytest.mark.parametrize('column, a', [('noisy_labels_0', 4), ('noisy_labels_25', 3), (None, 4)])
def test_the_column_chooses_the_labels(tmp_path, column, a):
    dls = load_data(imagenette(tmp_path), lambda text: None, size=8, bs=2, label_column=column)
    assert np.bincount(train_labels(dls)).tolist()==[a, 8 - a] and len(dls.valid_ds)==2


def test_a_table_without_split_is_split(tmp_path):
    plant(tmp_path, ' '.join(f'x{i}.jpg' for i in range(10)),
          {'labels.csv': 'id,breed\n' + ''.join(f'x{i},{"pug" if i%2 else "collie"}\n' for i in range(10))})
    layout = read_layout(tmp_path, label_column='breed', valid_pct=.4)
    assert layout.classes==dict(collie=(3, 2), pug=(3, 2)) and layout.source.startswith('at random')


tables = { # a table and what is said of it
    'no such column': ('id,race\nx1,pug', "got 'breed'; there are id, race"),
    'no column of files': ('number,breed\nx1,pug', 'has no column of files'),
    'a missing file': ('id,breed\nx1,pug\nx9,pug', r'lacks 1 images that t.csv names \(x9\)'),
    'twice': ('id,breed\nx1,pug\nx1,collie', 'more often; keep one line each'),
    'an odd split': ('id,breed,split\nx1,pug,odd', 'line 2: the split must be True'),
    'no label': ('id,breed\nx1,\nx2,pug', r'has no breed for some images \(x1.jpg\)'),
    'one class': ('id,breed\nx1,pug\nx2,pug', 'one class only')}

@pytest.mark.parametrize('case', tables)
def test_wrong_tables(tmp_path, case):
    text,said = tables[case]
    plant(tmp_path, 'x1.jpg x2.jpg', {'t.csv': text})
    with pytest.raises(ValueError, match=said): read_layout(tmp_path, label_column='breed')


def test_names(tmp_path, monkeypatch):
    "What is unpacked already is not fetched again; a folder of that name is the folder"
    monkeypatch.setattr('fastai_featreg.data.untar_data', lambda url: imagenette(tmp_path/'data'))
    monkeypatch.chdir(tmp_path)
    said = []
    load_data('imagenette', said.append, size=8, bs=2)
    assert str(tmp_path/'data') in said[0] and 'folder val validates' in said[0]
    (tmp_path/'imagenette').mkdir()
    with pytest.raises(ValueError, match='imagenette has no images'): load_data('imagenette')
    with pytest.raises(ValueError, match=r"imagenette, .*got 'imagenet'"): load_data('imagenet')


@pytest.mark.parametrize('name', ['digits', 'cifar10'])
def test_no_column_where_there_is_no_table(name):
    with pytest.raises(ValueError, match='label_column'): load_data(name, label_column='x')


def test_large_sets_are_sampled(tmp_path, monkeypatch):
    "Damage and copies are not looked for in every file, nor is every file read for its fingerprint; it is said"
    plant(tmp_path, *sets['ImageNet'][:2])
    monkeypatch.setattr('fastai_featreg.folders.most_files', 4)
    monkeypatch.setattr('fastai_featreg.data.file_sample', lambda files: layouts.file_sample(files, 2, 4))
    said = []
    dls = folder_dls(tmp_path, size=8, bs=2, say=said.append)
    assert 'copies across the split are not looked for among 5 images' in said[0]
    assert 'only 2 of the images are opened' in said[1]
    first = fingerprints.data_id(dls)
    monkeypatch.setattr(fingerprints, 'most_read', 2)
    second = fingerprints.data_id(dls)
    assert first!=second
    (tmp_path/'train'/'n1'/'a.JPEG').write_bytes(b'x')
    assert fingerprints.data_id(dls)!=second


# ---- sets by name: one list for loaders, plans and the comparison

@pytest.mark.parametrize('name', ['digits', 'cifar10', 'cifar100', *layouts.named_sets])
def test_a_table_takes_every_set_that_the_loaders_know(name):
    assert reproduce.data_of(name, None)==name
    assert name in layouts.named_sets or name in named.own_sets
    reproduce.images_of_run(find_protocol('fm_cub'), name, per_class=5)

def test_the_lists_of_sets_need_no_torch():
    code = 'import sys, fastai_featreg.sets; assert not {"torch", "fastai"} & set(sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], timeout=100).returncode==0

def test_arguments_about_data_stand_in_one_list():
    "`load_data` and the makers of loaders behind it take them all, and `compare` does"
    taken = {k for f in (load_data, folder_dls) for k in inspect.signature(f).parameters}
    assert {*named.data_arguments} <= taken
    assert {*named.data_arguments} <= {*inspect.signature(compare).parameters} | {*rules}
