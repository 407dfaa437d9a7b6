"""Run the tutorials, each in an empty folder; one whose data or weights are not here is skipped, and says what it lacks

    python tools/tutorials.py               # all
    python tools/tutorials.py 01 03 --save  # two, and keep their outputs
"""
import argparse, base64, io, re, shutil, sys, tempfile
from pathlib import Path
import timm
from PIL import Image
from fastai.data.external import fastai_path
from fastcore.nbio import read_nb, write_nb
from huggingface_hub import try_to_load_from_cache
from nbdev.clean import nbdev_clean
from nbdev.test import test_nb as run_notebook # pytest takes a `test_...` for a test

root = Path(__file__).parent.parent
# what each reads: folders of fastai's data folder, and networks of timm whose pretrained weights it begins with
data = {
    '01_my_photographs': ['flowers'],
    '02_wrong_labels': ['imagenette2-160'],
    '03_few_images': ['flowers'],
    '04_teacher': ['imagenette2-160'],
    '05_where_it_looks': ['tinyimagenet30'],
    '06_large_maps': ['imagenette2-160'],
}
pretrained = ['tf_efficientnet_lite0']
weights = dict.fromkeys(data, pretrained)


def tutorials() -> list: return sorted((root/'nbs/tutorials').glob('[0-9]*.ipynb'))


def has_weights(
    arch: str, # name of a network of timm
) -> bool:
    "Are its pretrained weights in the hub's cache?"
    hub = timm.get_pretrained_cfg(arch).hf_hub_id
    files = ['model.safetensors', 'pytorch_model.bin']
    return any(isinstance(try_to_load_from_cache(hub, f), str) for f in files)


def missing(
    name: str, # of a tutorial
) -> list: # empty: it can run
    "Data and weights of a tutorial that are not on this machine"
    folders = [fastai_path('data')/d for d in data.get(name, [])]
    return ([f'data {f.name}' for f in folders if not f.exists()]
            + [f'weights of {a}' for a in weights.get(name, []) if not has_weights(a)])


def as_read(
    text: str, # what a cell has printed
    here: str, # fastai's data folder
) -> str: # without this machine's folders, carriage returns and progress bars
    "Output as it is to be read on another machine"
    # the home folder last, for the others may lie in it
    for folder,name in {here: '~/.fastai/data', sys.prefix: '~/venv', str(Path.home()): '~'}.items():
        text = text.replace(folder, name)
    text = text.replace('\r', '')
    lines = text.splitlines(keepends=True)
    return ''.join(o for o in lines if not re.search(r'\|[█-]+\| *[\d.]+%', o))


def smaller(
    png: str, # a picture as notebooks keep it
) -> str: # the same with sides of at most 900 pixels
    "Fewer bytes for photographs"
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    image.thumbnail((900, 900))
    image.save(kept := io.BytesIO(), 'PNG', optimize=True)
    return base64.b64encode(kept.getvalue()).decode()


def tidy(
    file: Path, # notebook with outputs
):
    "Outputs of a notebook that another machine could have written, and pictures of 900 pixels"
    nb,here = read_nb(file),str(fastai_path('data'))
    for output in [o for c in nb.cells for o in c.get('outputs', [])]:
        if 'text' in output: output['text'] = as_read(''.join(output['text']), here).splitlines(keepends=True)
        pictures = output.get('data', {})
        if 'image/png' in pictures: pictures['image/png'] = smaller(pictures['image/png'])
    for cell in nb.cells:
        if cell.cell_type=='code': cell.outputs = [o for o in cell.outputs if o.get('text', 'a picture')]
    write_nb(nb, file)


def run(
    file: Path, # notebook
    save: bool=False, # keep its outputs?
) -> tuple: # has it run without an error, and its seconds
    "Run one in an empty folder, so that no results of an earlier run are found there"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(file, folder))
        # a cell may train many runs, and on a machine that does other things that takes long
        passed,seconds = run_notebook(copy, basepath=root, save=save, cell_timeout=None)
        if passed and save: shutil.copy(copy, file)
    if passed and save:
        nbdev_clean(str(file))
        tidy(file)
    return passed,seconds


def main() -> int:
    "1 if a tutorial has failed"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', help='beginnings of their names; none: all')
    p.add_argument('--save', action='store_true', help='write the outputs into the notebooks')
    args,failed = p.parse_args(),0
    for file in tutorials():
        if args.names and not file.name.startswith(tuple(args.names)): continue
        if lacks := missing(file.stem):
            print(f"{file.name}: skipped, {' and '.join(lacks)} not here")
            continue
        passed,seconds = run(file, args.save)
        failed += not passed
        print(f"{file.name}: {'passed' if passed else 'FAILED'} in {seconds:.0f} s", flush=True)
    return int(failed>0)


if __name__=='__main__': sys.exit(main())
