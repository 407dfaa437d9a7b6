"Damaged and odd files and tables: what the network sees of each, or the sentence that refuses it, one case a line"
import io
import os
import struct
import zlib
import numpy as np, pytest
from PIL import Image
from fastai.vision.all import PILImage, load_learner, vision_learner, resnet18
from fastai_featreg.boxes import get_boxes
from fastai_featreg.data import boxed_folder_dls, folder_dls, load_data
from fastai_featreg.files import check_files, image_size, open_image
from fastai_featreg.folders import read_layout
from fastai_featreg.tables import has_box_table
from grammar import in_grammar

rng = np.random.default_rng(0)
grey = rng.integers(0, 255, (6, 8), dtype=np.uint8)
rgb = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
alpha = np.where(np.arange(8)<4, 255, 0).astype(np.uint8)*np.ones((6, 1), np.uint8) # the right half is transparent
on_white = np.where(alpha[..., None]==255, rgb, 255).astype(np.uint8)


def three(a): return np.stack([a]*3, -1)

def saved(image, form, **kwargs):
    "Content of a file"
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, form, **kwargs)
    return out.getvalue()

T = Image.Transpose
undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE,
        8: T.ROTATE_270} # what a camera does that was held like this

def turned(k, pixels=rgb, form='PNG', **kwargs):
    "`pixels` stored so that EXIF orientation `k` brings them upright"
    exif = Image.Exif()
    exif[0x0112] = k
    img = Image.fromarray(pixels)
    return saved(img.transpose(undo[k]) if k in undo else img, form, exif=exif, **kwargs)

def huge():
    "Head of a PNG of 40000 x 40000 pixels"
    head = struct.pack('>IIBBBBB', 40000, 40000, 8, 2, 0, 0, 0)
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')

def palette(transparent=None):
    "A palette image of two colours, red and blue"
    img = Image.fromarray((grey>127).astype(np.uint8), mode='P')
    img.putpalette([255, 0, 0, 0, 0, 255])
    return saved(img, 'PNG', **({} if transparent is None else dict(transparency=transparent)))

red_blue = np.where((grey>127)[..., None], np.uint8([0, 0, 255]), np.uint8([255, 0, 0]))
deep = grey.astype(np.uint16)*257
noisy = np.asarray(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)))
photo = saved(noisy, 'JPEG')

# name: (content, pixels that the network sees)
seen = {
    'rgb.png': (saved(rgb, 'PNG'), rgb),
    'grey.png': (saved(grey, 'PNG'), three(grey)),
    'one_bit.png': (saved(Image.fromarray(grey>127), 'PNG'), three((grey>127)*np.uint8(255))),
    'sixteen_bits.png': (saved(deep, 'PNG'), three(grey)),
    'sixteen_bits.tif': (saved(deep, 'TIFF'), three(grey)),
    'sixteen_bits_black.png': (saved(deep*0, 'PNG'), three(grey*0)),
    'sixteen_bits_turned.tif': (saved(deep.T[::-1], 'TIFF', tiffinfo={0x0112: 6}), three(grey)),
    'int32_of_8_bits.tif': (saved(grey.astype(np.int32), 'TIFF'), three(grey)),
    'int32_of_16_bits.tif': (saved(deep.astype(np.int32), 'TIFF'), three(grey)),
    'floats_to_1.tif': (saved((grey/255).astype(np.float32), 'TIFF'), three(grey)),
    'floats_to_255.tif': (saved(grey.astype(np.float32), 'TIFF'), three(grey)),
    'palette.png': (palette(), red_blue),
    'palette_transparent.png': (palette(1), np.where((grey>127)[..., None], 255, red_blue).astype(np.uint8)),
    'rgba_opaque.png': (saved(np.dstack([rgb, alpha*0 + 255]), 'PNG'), rgb),
    'rgba.png': (saved(np.dstack([rgb, alpha]), 'PNG'), on_white),
    'rgba.webp': (saved(np.dstack([rgb, alpha]), 'WEBP', lossless=True, exact=True), on_white),
    'la.png': (saved(Image.fromarray(np.dstack([grey, alpha]), mode='LA'), 'PNG'),
               np.where(alpha[..., None]==255, three(grey), 255)),
    'colour_key.png': (saved(red_blue, 'PNG', transparency=(255, 0, 0)),
                       np.where((grey>127)[..., None], red_blue, 255)),
    'wrong_suffix.jpg': (saved(rgb, 'PNG'), rgb),
    'frames.gif': (saved(Image.fromarray(grey), 'GIF', save_all=True, append_images=[Image.fromarray(255 - grey)]),
                   three(grey)),
    'pages.tif': (saved(Image.fromarray(rgb), 'TIFF', save_all=True, append_images=[Image.fromarray(255 - rgb)]), rgb),
    'one_pixel.png': (saved(rgb[:1, :1], 'PNG'), rgb[:1, :1]),
    'CAPITALS.PNG': (saved(rgb, 'PNG'), rgb),
    'кот 犬.png': (saved(rgb, 'PNG'), rgb),
    ' with spaces .png': (saved(rgb, 'PNG'), rgb),
    'two\nlines.png': (saved(rgb, 'PNG'), rgb),
    'x'*250 + '.png': (saved(rgb, 'PNG'), rgb),
    'exif_of_nonsense.png': (saved(rgb, 'PNG', exif=b'Exif\0\0MM\0*\0\0\xff\xffgarbage'), rgb),
    **{f'turned_{k}.png': (turned(k), rgb) for k in range(1, 9)},
    'turned.webp': (turned(6, form='WEBP', lossless=True), rgb),
    'bitmap.bmp': (saved(rgb, 'BMP'), rgb),
}


@pytest.mark.parametrize('name', seen)
def test_what_the_network_sees(tmp_path, name):
    data,pixels = seen[name]
    file = tmp_path/name
    file.write_bytes(data)
    img = open_image(file)
    assert type(img) is PILImage and img.mode=='RGB'
    assert np.array_equal(np.asarray(img), pixels), np.abs(np.asarray(img).astype(int) - pixels).max()
    assert image_size(file)==img.size==pixels.shape[1::-1]
    for same in (data, str(file)): assert np.array_equal(np.asarray(open_image(same)), pixels)
    check_files([file], tmp_path)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_photos_are_opened_as_by_fastai(tmp_path, mode):
    Image.fromarray(noisy).convert(mode).save(tmp_path/'1.jpg')
    assert np.array_equal(np.asarray(open_image(tmp_path/'1.jpg')), np.asarray(PILImage.create(tmp_path/'1.jpg')))


# name: (content, reason)
bad = {
    'empty.png': (b'', 'is empty'),
    'page.jpg': (b'\xef\xbb\xbf\n <!DOCTYPE html><html>', 'is a web page'),
    'drawing.svg': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'is a web page, SVG or other text'),
    'pointer.jpg': (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n', 'is a Git LFS pointer'),
    'text.jpg': (b'not an image', 'is no image that Pillow knows'),
    'head.jpg': (photo[:20], 'is no image that Pillow knows'),
    'cut.jpg': (photo[:len(photo)//2], 'is damaged (image file is truncated'),
    'cut.png': (saved(noisy, 'PNG')[:-3000], 'is damaged ('),
    'cut.tif': (saved(noisy, 'TIFF')[:3000], 'is '),
    'flipped.png': (saved(rgb, 'PNG').replace(b'IDAT', b'IDAX'), 'is '),
    'huge.png': (huge(), 'has more pixels than Pillow opens'),
    'nan.tif': (saved(np.float32([[0, np.nan]]), 'TIFF'), 'holds values that are NaN or infinite'),
    'inf.tif': (saved(np.float32([[0, np.inf]]), 'TIFF'), 'holds values that are NaN or infinite'),
    'negative.tif': (saved(np.float32([[-1, 1]]), 'TIFF'), 'holds values from -1 to 1, of no known range'),
    'metres.tif': (saved(np.float32([[0, 8848]]), 'TIFF'), 'holds values from 0 to 8848'),
    'counts.tif': (saved(np.int32([[0, 100000]]), 'TIFF'), 'holds values from 0 to 100000'),
    'twelve_bits.png': (saved(np.uint16([[0, 4095]]), 'PNG'),
                        'has 16 bits a pixel, but its brightest is 4095 of 65535'),
}


@pytest.mark.parametrize('name', bad)
def test_bad_files_have_a_reason(tmp_path, name):
    content,reason = bad[name]
    (tmp_path/name).write_bytes(content)
    with pytest.raises(ValueError) as e: open_image(tmp_path/name)
    assert f'{name} {reason}' in str(e.value) and '\n' not in str(e.value)
    assert str(e.value).endswith('; remove or replace it')
    with pytest.raises(ValueError, match='1 unreadable images of 1') as e: check_files([tmp_path/name], tmp_path)
    assert f'({name} {reason}' in str(e.value)


def test_bad_files_are_named_before_training(tmp_path):
    for c in ('cat', 'dog'):
        (tmp_path/c).mkdir()
        for i in range(6): Image.fromarray(noisy).save(tmp_path/c/f'{i}.png')
    names = 'empty.png', 'page.jpg', 'cut.jpg', 'nan.tif'
    for name in names: (tmp_path/'cat'/name).write_bytes(bad[name][0])
    with pytest.raises(ValueError) as e: folder_dls(tmp_path, size=16, bs=4, say=lambda s: None)
    assert '4 unreadable images of 16' in str(e.value) and 'and 1 more' in str(e.value)
    assert sum(f'cat/{n} {bad[n][1]}' in str(e.value) for n in names)==3


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match='gone.png is missing'): open_image(tmp_path/'gone.png')
    (tmp_path/'link.png').symlink_to('gone.png')
    with pytest.raises(ValueError, match='link.png is missing'): open_image(tmp_path/'link.png')
    (tmp_path/'folder.png').mkdir()
    with pytest.raises(ValueError, match='folder.png is damaged'): open_image(tmp_path/'folder.png')


@pytest.mark.skipif(os.geteuid()==0, reason='root may read every file')
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path/'1.png').write_bytes(saved(rgb, 'PNG'))
    (tmp_path/'1.png').chmod(0)
    with pytest.raises(ValueError, match='may not be read'): open_image(tmp_path/'1.png')


# tables

head = 'path,label,split,x0,y0,x1,y1'
rows = ['1.png,a,train,0,0,4,4', '2.png,b,train,0,0,4,4', '3.png,a,valid,0,0,4,4', '4.png,b,valid,0,0,4,4']
good = {'a': (1, 1), 'b': (1, 1)}

def table(*changed, first=head, sep=',', end='\n', **cells):
    "The table, with `changed` rows behind it; `row3='...'` is put in the place of the third"
    lines = [cells.get(f'row{i+1}', r) for i,r in enumerate(rows)]
    return end.join([first, *lines, *changed]).replace(',', sep) + end

def as_(*labels):
    "The table with other names of its two classes"
    new = [r.replace(',a,', f',{labels[0]},').replace(',b,', f',{labels[1]},') for r in rows]
    return table(**{f'row{i+1}': r for i,r in enumerate(new)})

def reordered():
    "The table with its columns in another order"
    cells = [r.split(',') for r in rows]
    return '\n'.join(['x0,y0,x1,y1,label,split,path', *(','.join([*c[3:], *c[1:3], c[0]]) for c in cells)])

# name: (content, classes, or the sentence)
tables = {
    'plain': (table(), good),
    'semicolons': (table(sep=';'), good),
    'tabs': (table(sep='\t'), good),
    'bars': (table(sep='|'), good),
    'commas and spaces': (table(sep=', '), good),
    'mark of a spreadsheet': ('\ufeff' + table(), good),
    'utf-16': (table().encode('utf-16'), good),
    'sep=': ('sep=;\n' + table(sep=';'), good),
    'CRLF': (table(end='\r\n'), good),
    'CR': (table(end='\r'), good),
    'blank lines': (table('', ',,,,,,', ''), good),
    'no end of line': (table().rstrip('\n'), good),
    'capitals': (table(first=head.upper()), good),
    'other columns': ('id,' + head + ',note\n' + '\n'.join(f'{i},{r},' for i,r in enumerate(rows)), good),
    'another order': (reordered(), good),
    'quoted path': (table(row1='"1.png",a,train,0,0,4,4'), good),
    'a comma in a name': (table(row1='"one, two.png",a,train,0,0,4,4'), good),
    'backslashes': (table(row1=r'sub\5.png,a,train,0,0,4,4'), good),
    'a dot in front': (table(row1='./1.png,a,train,0,0,4,4'), good),
    'decimal point': (table(row1='1.png,a,train,0.5,0,4.25,4'), good),
    'decimal comma': (table(sep=';').replace(';0;0;4;4', ';0,5;0;4,25;4'), good),
    'quoted decimal comma': (table(row1='1.png,a,train,"0,5",0,"4,25",4'), good),
    'trailing separators': (table(row1=rows[0] + ',,'), good),
    'split names': (table(row1='1.png,a,Training,0,0,4,4', row3='3.png,a,VAL,0,0,4,4', row4='4.png,b,dev,0,0,4,4'),
                    good),
    'test validates': (table(row3=rows[2].replace('valid', 'test'), row4=rows[3].replace('valid', 'test')), good),
    'valid before test': (table('5.png,a,test,0,0,4,4'), good),
    'duplicate rows': (table(rows[0], rows[0]), good),
    **{f'classes {a} and {b}': (as_(a, b), {x: (1, 1) for x in sorted((a, b))}) for a,b in
       (('NA', 'None'), ('nan', 'null'), ('true', 'False'), ('001', '1'), ('1', '1.0'), ('N/A', '#N/A'),
        ('1e5', '100000'), ('é', 'ж'))},
    'empty file': ('', 'has no labels.csv with the columns'),
    'head only': (head + '\n', '0 rows of split train and 0 of split valid'),
    'no box columns': ('path,label\n1.png,a\n', 'has no labels.csv with the columns'),
    'no split column': ('path,label,x0,y0,x1,y1\n1.png,a,0,0,4,4\n', 'lacks the columns split (it has path, label, x0'),
    'no label column': ('path,split,x0,y0,x1,y1\n1.png,train,0,0,4,4\n', 'lacks the columns label'),
    'a column twice': (table(first=head + ',label').replace('4,4\n', '4,4,c\n'), 'has the column label more than once'),
    'not UTF-8': (as_('é', 'b').encode('latin-1'), 'is not written in UTF-8'),
    'binary': (b'\x00\x01\x02\xff', 'is not written in UTF-8'),
    'an open quote': (table(row1='"1.png,a,train,0,0,4,4'), 'has 1 cells for 7 columns'),
    'a short row': (table(row1='1.png,a,train,0,0,4'), 'line 2 has 6 cells for 7 columns'),
    'a long row': (table(row2='2.png,b,train,0,0,4,4,9'), 'line 3 has 8 cells for 7 columns'),
    'decimal commas unquoted': (table(row1='1.png,a,train,0,5,0,4,25,4'),
                                'line 2 has 9 cells for 7 columns; correct it, or quote'),
    'empty label': (table(row1='1.png,,train,0,0,4,4'), 'line 2: label is empty'),
    'empty path': (table(row1=' ,a,train,0,0,4,4'), 'line 2: path is empty'),
    'empty split': (table(row3='3.png,a,,0,0,4,4'), 'line 4: split is empty'),
    'empty box': (table(row1='1.png,a,train,,,,'), 'line 2: x0 is empty'),
    'unknown split': (table(row1=rows[0].replace('train', 'unused')), 'split must be train, valid or test, got unused'),
    'NaN box': (table(row1='1.png,a,train,0,0,nan,4'), 'must be finite and not negative, got 0, 0, nan, 4'),
    'infinite box': (table(row1='1.png,a,train,0,0,inf,4'), 'got 0, 0, inf, 4'),
    'negative box': (table(row1='1.png,a,train,-1,0,4,4'), 'not negative'),
    'a box of nothing': (table(row1='1.png,a,train,4,0,4,4'), 'x0 < x1'),
    'width and height': (table(row1='1.png,a,train,4,4,2,2'), 'x0 < x1'),
    'a box of words': (table(row1='1.png,a,train,left,0,4,4'), 'must be numbers, got left, 0, 4, 4'),
    'thousands': (table(row1='1.png,a,train,"1.000,5",0,4,4'), 'must be numbers, got 1.000,5, 0'),
    'a box outside': (table(row1='1.png,a,train,0,0,40,4'),
                      'of 8x6 pixels the box (0.0, 0.0, 40.0, 4.0); correct it, or remove the row'),
    'a box of the file as it lies': (table(row1='1.png,a,train,0,0,6,8'),
                                     'boxes count the pixels of the upright picture'),
    'a missing image': (table(row1='9.png,a,train,0,0,4,4'), 'lacks 1 images that labels.csv names (9.png)'),
    'outside the folder': (table(row1='../1.png,a,train,0,0,4,4'), 'line 2: path must lie in'),
    'an absolute path': (table(row1='/etc/1.png,a,train,0,0,4,4'), 'line 2: path must lie in'),
    'another class for an image': (table('1.png,b,train,0,0,4,4'), 'line 6 gives 1.png another class, split or box'),
    'another split for an image': (table('1.png,a,valid,0,0,4,4'), 'line 6 gives 1.png another class, split or box'),
    'two objects in an image': (table('1.png,a,train,4,4,6,6'), 'keep one row an image'),
    'a link on both sides': (table('link.png,a,valid,0,0,4,4'), '1 images on both sides'),
    'one class': (as_('a', 'a'), 'one class only (a)'),
    'a class that only validates': (table(row3=rows[2].replace('a,valid', 'c,valid')), 'no training images (c)'),
}


@pytest.mark.parametrize('name', tables)
def test_table(tmp_path, name):
    content,expected = tables[name]
    for f in ('1', '2', '3', '4', '5', 'one, two', 'sub/5'):
        (tmp_path/f).parent.mkdir(exist_ok=True)
        (tmp_path/f'{f}.png').write_bytes(saved(rgb, 'PNG'))
    (tmp_path/'link.png').symlink_to('1.png')
    (tmp_path/'labels.csv').write_bytes(content if isinstance(content, bytes) else content.encode())
    told = []
    if isinstance(expected, str):
        with pytest.raises(ValueError) as e: boxed_folder_dls(tmp_path, size=8, bs=1, say=told.append)
        assert expected in str(e.value) and '\n' not in str(e.value) and in_grammar(str(e.value)), e.value
        return
    dls = boxed_folder_dls(tmp_path, size=8, bs=1, say=told.append)
    layout = read_layout(tmp_path)
    assert layout.classes==expected and layout.boxed and told==[str(layout)] and list(dls.vocab)==list(expected)
    assert 'column split of labels.csv' in told[0]
    if 'decimal' in name: assert layout.train[0].box[0]==0.5
    if name=='duplicate rows': assert '2 rows of labels.csv repeat another' in told[0]
    if name=='valid before test': assert 'rows of split test' in told[0] and '5.png' in told[0]


@pytest.mark.parametrize('columns', ['name,label', 'filename,class,xmin,ymin,xmax,ymax', 'path;label;is_valid', 'x'])
def test_a_table_that_is_passed_over_is_told(tmp_path, columns):
    for c in ('cat', 'dog'):
        (tmp_path/c).mkdir()
        for i in range(4): (tmp_path/c/f'{i}.png').write_bytes(saved(rgb, 'PNG'))
    (tmp_path/'Labels.CSV').write_text(columns + '\n1,2\n')
    told = []
    load_data(tmp_path, size=8, bs=2, num_workers=0, say=told.append)
    first = columns.replace(';', ',').split(',')[0]
    assert not has_box_table(tmp_path) and f'Labels.CSV is not read: it has the columns {first}' in told[0]
    (tmp_path/'Labels.CSV').write_text(table())
    folder_dls(tmp_path, size=8, bs=2, num_workers=0, say=told.append)
    assert 'Labels.CSV has boxes that are not read here' in told[1]
    (tmp_path/'Labels.CSV').write_text('path,label,x0\n')
    folder_dls(tmp_path, size=8, bs=2, num_workers=0, say=told.append)
    assert 'lacks the columns split, y0' in told[2]


@pytest.mark.parametrize('k', range(1, 9))
def test_boxes_lie_on_the_object_of_the_upright_picture(tmp_path, k):
    "A white object on black, stored in each of the eight ways of EXIF: the box finds it"
    upright = np.zeros((32, 64), np.uint8)
    upright[4:12, 40:60] = 255
    for i in range(1, 5): (tmp_path/f'{i}.png').write_bytes(turned(k, upright))
    (tmp_path/'labels.csv').write_text(table().replace('0,0,4,4', '40,4,60,12'))
    for in_memory in (True, False):
        dls = boxed_folder_dls(tmp_path, size=64, bs=2, augment=False, in_memory=in_memory, say=lambda s: None)
        x,(x0,y0,x1,y1) = dls.valid.one_batch()[0][0, 0],get_boxes(dls.valid)[0].int().tolist()
        lit = x > x.mean()
        assert (x0, y0, x1, y1)==(40, 8, 60, 24)
        assert lit[y0+1:y1-1, x0+1:x1-1].all() and lit.sum() < 1.3*(y1 - y0)*(x1 - x0), 'the box lies beside the object'


def test_every_loader_opens_files_alike(tmp_path):
    "16 bits and a turned photo reach the batch as `open_image` makes them, and those of an exported learner"
    for c in ('cat', 'dog'):
        (tmp_path/c).mkdir()
        for i in range(5):
            content = seen['sixteen_bits_turned.tif' if i%2 else 'sixteen_bits.png'][0]
            (tmp_path/c/f'{i}.png').write_bytes(content)
    dls = folder_dls(tmp_path, size=8, bs=2, augment=False, num_workers=0, say=lambda s: None)
    assert dls.valid.one_batch()[0].std() > 0.1, 'white all over'
    img = dls.valid_ds[0][0]
    assert type(img) is PILImage and np.array_equal(np.asarray(img), three(grey))
    learn = vision_learner(dls, resnet18, pretrained=False)
    learn.export(tmp_path/'learn.pkl')
    loaded = load_learner(tmp_path/'learn.pkl')
    with learn.no_bar(): a = learn.predict(tmp_path/'cat'/'1.png')[2]
    with loaded.no_bar():
        for f in (tmp_path/'cat'/'1.png', three(grey), PILImage.create(three(grey))):
            assert (loaded.predict(f)[2] - a).abs().max() < 1e-5
    dls.show_batch(max_n=2)
