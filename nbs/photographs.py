"""Two photographs that come with scikit-learn, and a network that looks at them"""
import os

import timm
import torch
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    DataLoaders,
    ImageBlock,
    IndexSplitter,
    Learner,
    Normalize,
    PILImage,
    Resize,
    noop,
)
from sklearn.datasets import load_sample_image

arch = 'tf_efficientnet_lite0'
credit = ('Photographs: danielbuechele (temple) and vultilion (flower) on Flickr, '
          '[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/), as they come with scikit-learn.')
names = {'temple': 'china.jpg', 'flower': 'flower.jpg'}


def kept_weights() -> str | None:
    "File of the network's ImageNet weights if it is on this machine; nothing is downloaded for a picture"
    from huggingface_hub import try_to_load_from_cache
    file = try_to_load_from_cache(f'timm/{arch}.in1k', 'model.safetensors')
    return file if isinstance(file, str | os.PathLike) else None


def said() -> str:
    "Which weights the pictures are made with, and whose photographs they are"
    trained = f'`{arch}` with its ImageNet weights' if kept_weights() else (
        f'`{arch}` *untrained*, for its ImageNet weights are not on this machine; maps and answers mean nothing then')
    return f'Network: {trained}. {credit}'


def photographs(size: int, mean: tuple, std: tuple, which: tuple) -> DataLoaders:
    "Loaders of the photographs, in the middle of them a square of `size` pixels"
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda o: PILImage.create(load_sample_image(names[o])),
                      get_y=noop, splitter=IndexSplitter(range(len(which))), item_tfms=Resize(size),
                      batch_tfms=Normalize.from_stats(mean, std))
    return block.dataloaders([*which, *which], bs=len(which), num_workers=0)


def look_at(*which: str, size: int = 224) -> tuple[Learner, torch.Tensor]:
    "A learner whose network knows the 1,000 classes of ImageNet, and a batch of photographs"
    which = which or tuple(names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(arch, checkpoint_path=kept_weights() or '')
    dls = photographs(size, net.default_cfg['mean'], net.default_cfg['std'], which)
    learn = Learner(dls, net.eval(), loss_func=torch.nn.functional.cross_entropy)
    return learn, dls.valid.one_batch()[0]


def answers(logits: torch.Tensor, n: int = 5, temperature: float = 1.) -> dict:
    "Class in words -> probability, of the `n` likeliest of one image"
    words = timm.data.ImageNetInfo().index_to_description
    top = (logits/temperature).softmax(0).topk(n)
    return {words(int(i)).split(',')[0]: p.item() for p, i in zip(*top, strict=True)}
